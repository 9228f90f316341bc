-- Crash-free sessions and crash-free users, by day (UTC) and version of the app.
-- A session counts on the day it began; users are those whom the app has named.
select
    project,
    day,
    app_version,
    count(*) as sessions,
    count(case when has_crash then 1 end) as crashed_sessions,
    round(100.0 * count(case when has_crash then null else 1 end) / count(*), 2)
        as crash_free_sessions_percent,
    count(distinct user_id) as users,
    count(distinct case when has_crash then user_id end) as crashed_users,
    round(
        100.0
        * (count(distinct user_id) - count(distinct case when has_crash then user_id end))
        / nullif(count(distinct user_id), 0),
        2
    ) as crash_free_users_percent,
    count(case when user_id is null then 1 end) as sessions_without_user
from bugspulse_views.sessions
where day >= date '2000-01-01'  -- from when; the last 30 days: current_date - 30
group by project, day, app_version
order by project, day desc, app_version desc nulls last;
