{{ config(
    materialized=bugspulse.growing(),
    incremental_strategy='delete+insert',
    unique_key=['project', 'day']
) }}

{% if is_incremental() %}
with touched as ({{ bugspulse.touched_days(ref('bugspulse__sessions')) }}
)
{% endif %}

select
    sessions.project,
    sessions.day,
    coalesce(sessions.platform, 'unknown') as platform,
    coalesce(sessions.app_version, 'unknown') as app_version,
    count(*) as sessions,
    count(case when sessions.has_crash then 1 end) as crashed_sessions,
    count(case when sessions.status = 'active' then 1 end) as sessions_without_end,
    {{ bugspulse.percent('count(case when not sessions.has_crash then 1 end)', 'count(*)') }}
        as crash_free_sessions_percent,
    count(distinct sessions.user_id) as users,
    count(distinct case when sessions.has_crash then sessions.user_id end) as crashed_users,
    {{ bugspulse.percent(
        '(count(distinct sessions.user_id) - count(distinct case when sessions.has_crash then sessions.user_id end))',
        'count(distinct sessions.user_id)'
    ) }} as crash_free_users_percent,
    count(case when sessions.user_id is null then 1 end) as sessions_without_user,
    max(sessions.loaded_at) as loaded_at
from {{ ref('bugspulse__sessions') }} as sessions
{% if is_incremental() %}
inner join touched on touched.project = sessions.project and touched.day = sessions.day
{% endif %}
where sessions.day is not null
group by
    sessions.project,
    sessions.day,
    coalesce(sessions.platform, 'unknown'),
    coalesce(sessions.app_version, 'unknown')
