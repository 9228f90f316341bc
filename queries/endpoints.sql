-- The slowest endpoints and those that fail most: the first ten of each, of those with at
-- least ten calls; of each project.
with endpoints as (
    select
        project,
        method,
        endpoint,
        count(*) as calls,
        count(case when failed then 1 end) as failed_calls,
        round(100.0 * count(case when failed then 1 end) / count(*), 2) as failed_percent,
        percentile_cont(0.5) within group (order by duration) as p50_ms,
        percentile_cont(0.95) within group (order by duration) as p95_ms
    from bugspulse_views.network
    where day >= date '2000-01-01'  -- from when; the last 30 days: current_date - 30
    group by project, method, endpoint
    having count(*) >= 10
),

ranked as (
    select
        *,
        rank() over (partition by project order by p95_ms desc nulls last) as slowest,
        rank() over (partition by project order by failed_percent desc) as most_failing
    from endpoints
)

select
    project,
    method,
    endpoint,
    calls,
    failed_calls,
    failed_percent,
    cast(round(cast(p50_ms as decimal(18, 3))) as bigint) as p50_ms,
    cast(round(cast(p95_ms as decimal(18, 3))) as bigint) as p95_ms,
    slowest,
    most_failing
from ranked
where slowest <= 10 or most_failing <= 10
order by project, slowest, most_failing, method, endpoint;
