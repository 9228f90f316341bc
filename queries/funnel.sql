-- How many sessions went through these screens in this order, with any others between.
with recursive steps as (
    select 1 as step, 'Home' as screen
    union all select 2, 'Product'
    union all select 3, 'Cart'
    union all select 4, 'Checkout'
    union all select 5, 'Confirmation'
),

-- What `screens` of a session is like that has come to a step: %|Home|%|Product|% for the
-- second. The ! keeps a % or _ in a name from standing for anything.
patterns (step, screen, pattern) as (
    select 0 as step, cast('' as varchar) as screen, cast('%' as varchar) as pattern
    union all
    select
        steps.step,
        cast(steps.screen as varchar),
        cast(
            patterns.pattern
            || '|'
            || replace(
                replace(replace(replace(steps.screen, '|', '/'), '!', '!!'), '%', '!%'),
                '_',
                '!_'
            )
            || '|%' as varchar
        )
    from patterns
    inner join steps on steps.step = patterns.step + 1
),

reached as (
    select
        journeys.project,
        patterns.step,
        patterns.screen,
        count(case when journeys.screens like patterns.pattern escape '!' then 1 end)
            as sessions
    from bugspulse_views.journeys
    cross join patterns
    where
        patterns.step > 0
        -- from when; the last 30 days: current_date - 30
        and journeys.day >= date '2000-01-01'
    group by journeys.project, patterns.step, patterns.screen
)

select
    project,
    step,
    screen,
    sessions,
    round(
        100.0 * sessions
        / nullif(first_value(sessions) over (partition by project order by step), 0),
        2
    ) as percent_of_first,
    round(
        100.0 * sessions
        / nullif(lag(sessions) over (partition by project order by step), 0),
        2
    ) as percent_of_previous
from reached
order by project, step;
