{{ config(materialized='view') }}

-- An event's number gives its place among events, whatever the clock did; calls have a time
-- only. So events get a time that never runs back, and calls go in between.
with events as (
    select
        project,
        session_id,
        event_id as moment_id,
        'event' as source,
        event_type as moment_type,
        what,
        occurred_at,
        max(occurred_at) over (
            partition by project, session_id
            order by {{ bugspulse.event_order() }}
            rows between unbounded preceding and current row
        ) as placed_at,
        row_number() over (
            partition by project, session_id order by {{ bugspulse.event_order() }}
        ) as place,
        cast(null as {{ bugspulse.type_of('integer') }}) as status_code,
        cast(null as {{ bugspulse.type_of('integer') }}) as duration_ms,
        event_type in ('crash', 'error') as is_problem
    from {{ ref('stg_bugspulse__events') }}
),

calls as (
    select
        project,
        session_id,
        call_id as moment_id,
        'call' as source,
        'call' as moment_type,
        coalesce(method || ' ', '') || coalesce(endpoint, '') as what,
        called_at as occurred_at,
        called_at as placed_at,
        row_number() over (
            partition by project, session_id
            order by called_at, {{ bugspulse.ordered('call_id') }}
        ) as place,
        status_code,
        duration_ms,
        has_failed as is_problem
    from {{ ref('stg_bugspulse__network') }}
    where session_id is not null
),

moments as (
    select * from events
    union all
    select * from calls
),

placed as (
    select
        moments.*,
        row_number() over (
            partition by project, session_id order by placed_at nulls first, source desc, place
        ) as moment_number
    from moments
),

visited as (
    select
        placed.*,
        sum(case when moment_type = 'navigate' and what is not null then 1 else 0 end) over (
            partition by project, session_id
            order by moment_number
            rows between unbounded preceding and current row
        ) as visit
    from placed
)

select
    visited.project,
    visited.session_id,
    visited.moment_number,
    visited.source,
    visited.moment_type,
    visited.what,
    max(case when visited.moment_type = 'navigate' then visited.what end) over (
        partition by visited.project, visited.session_id, visited.visit
    ) as screen,
    visited.occurred_at,
    {{ bugspulse.milliseconds_between('sessions.started_at', 'visited.occurred_at') }}
        as ms_since_start,
    visited.status_code,
    visited.duration_ms,
    visited.is_problem,
    visited.moment_id
from visited
left join {{ ref('stg_bugspulse__sessions') }} as sessions
    on sessions.project = visited.project and sessions.session_id = visited.session_id
