-- Weeks begin on Monday.
with weeks as (
    select distinct
        activity.project,
        activity.user_id,
        cast(date_trunc('week', users.first_day) as date) as cohort_week,
        cast(date_trunc('week', activity.day) as date) as week
    from {{ ref('bugspulse__user_activity_daily') }} as activity
    inner join {{ ref('bugspulse__users') }} as users
        on users.project = activity.project and users.user_id = activity.user_id
),

counted as (
    select
        project,
        cohort_week,
        week,
        cast({{ dbt.datediff('weeks.cohort_week', 'weeks.week', 'day') }} / 7 as integer) as weeks_later,
        count(*) as users
    from weeks
    group by project, cohort_week, week
)

select
    project,
    cohort_week,
    week,
    weeks_later,
    first_value(users) over (partition by project, cohort_week order by week) as cohort_users,
    users,
    {{ bugspulse.percent(
        'users', 'first_value(users) over (partition by project, cohort_week order by week)'
    ) }} as retained_percent
from counted
