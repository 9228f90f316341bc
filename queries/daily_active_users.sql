-- Daily active users: the users who began a session on a day (UTC).
select
    project,
    day,
    count(distinct user_id) as users,
    count(*) as sessions,
    count(case when user_id is null then 1 end) as sessions_without_user
from bugspulse_views.sessions
where day >= date '2000-01-01'  -- from when; the last 30 days: current_date - 30
group by project, day
order by project, day desc;
