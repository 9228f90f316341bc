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
    sessions.user_id,
    count(*) as sessions,
    count(case when sessions.has_crash then 1 end) as crashed_sessions,
    sum(sessions.duration_ms) as duration_ms,
    sum(sessions.screens) as screens,
    sum(sessions.calls) as calls,
    sum(sessions.failed_calls) as failed_calls,
    max(sessions.loaded_at) as loaded_at
from {{ ref('bugspulse__sessions') }} as sessions
{% if is_incremental() %}
inner join touched on touched.project = sessions.project and touched.day = sessions.day
{% endif %}
where sessions.day is not null and sessions.user_id is not null
group by sessions.project, sessions.day, sessions.user_id
