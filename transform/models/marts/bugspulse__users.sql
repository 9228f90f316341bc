with numbered as (
    select
        sessions.*,
        row_number() over (
            partition by project, user_id
            order by started_at desc, {{ bugspulse.ordered('session_id') }}
        ) as from_latest
    from {{ ref('bugspulse__sessions') }} as sessions
    where day is not null and user_id is not null
)

select
    project,
    user_id,
    min(day) as first_day,
    max(day) as last_day,
    count(distinct day) as days_active,
    count(*) as sessions,
    count(case when has_crash then 1 end) as crashed_sessions,
    max(case when from_latest = 1 then platform end) as last_platform,
    max(case when from_latest = 1 then os_version end) as last_os_version,
    max(case when from_latest = 1 then app_version end) as last_app_version
from numbered
group by project, user_id
