{{ config(
    materialized=bugspulse.growing(),
    incremental_strategy='delete+insert',
    unique_key=['project', 'session_id']
) }}

with
{% if is_incremental() %}
touched as (
    select project, session_id
    from {{ ref('stg_bugspulse__sessions') }}
    where {{ bugspulse.is_new('loaded_at') }}
    union
    select project, session_id
    from {{ ref('stg_bugspulse__events') }}
    where {{ bugspulse.is_new('loaded_at') }}
    union
    select project, session_id
    from {{ ref('stg_bugspulse__network') }}
    where {{ bugspulse.is_new('loaded_at') }}
),
{% endif %}

{% for name in ['sessions', 'events', 'network'] %}
{{ name }} as (
    select rows_of.*
    from {{ ref('stg_bugspulse__' ~ name) }} as rows_of
    {% if is_incremental() %}
    inner join touched
        on touched.project = rows_of.project and touched.session_id = rows_of.session_id
    {% endif %}
),
{% endfor %}

screens as (
    select rows_of.*
    from {{ ref('int_bugspulse__screens') }} as rows_of
    {% if is_incremental() %}
    inner join touched
        on touched.project = rows_of.project and touched.session_id = rows_of.session_id
    {% endif %}
),

-- The last crash first, else the last error that the app handled.
ranked as (
    select
        events.*,
        row_number() over (
            partition by project, session_id
            order by
                case event_type when 'crash' then 0 when 'error' then 1 else 2 end,
                {{ bugspulse.event_order(descending=true) }}
        ) as crash_rank
    from events
),

of_events as (
    select
        project,
        session_id,
        count(*) as loaded_events,
        count(case when event_type = 'tap' then 1 end) as taps,
        count(case when event_type = 'custom' then 1 end) as custom_events,
        max(case when crash_rank = 1 and event_type in ('crash', 'error') then what end)
            as crash_message,
        max(case when crash_rank = 1 and event_type in ('crash', 'error') then occurred_at end)
            as crashed_at,
        max(loaded_at) as loaded_at
    from ranked
    group by project, session_id
),

of_screens as (
    select
        project,
        session_id,
        count(*) as screens,
        max(case when screen_number = 1 then screen end) as first_screen,
        max(case when next_screen is null then screen end) as last_screen
    from screens
    group by project, session_id
),

of_network as (
    select
        project,
        session_id,
        count(*) as calls,
        count(case when has_failed then 1 end) as failed_calls,
        max(loaded_at) as loaded_at
    from network
    group by project, session_id
)

select
    sessions.project,
    sessions.session_id,
    sessions.user_id,
    sessions.status,
    sessions.platform,
    sessions.os_version,
    sessions.app_version,
    sessions.network_type,
    sessions.day,
    sessions.started_at,
    sessions.ended_at,
    sessions.duration_ms,
    coalesce(sessions.has_crash, false) as has_crash,
    of_events.crash_message,
    of_events.crashed_at,
    sessions.event_count,
    coalesce(of_events.loaded_events, 0) as loaded_events,
    coalesce(of_events.loaded_events, 0) >= coalesce(sessions.event_count, 0) as has_all_events,
    coalesce(of_screens.screens, 0) as screens,
    of_screens.first_screen,
    of_screens.last_screen,
    coalesce(of_events.taps, 0) as taps,
    coalesce(of_events.custom_events, 0) as custom_events,
    coalesce(of_network.calls, 0) as calls,
    coalesce(of_network.failed_calls, 0) as failed_calls,
    greatest(
        sessions.loaded_at,
        coalesce(of_events.loaded_at, sessions.loaded_at),
        coalesce(of_network.loaded_at, sessions.loaded_at)
    ) as loaded_at
from sessions
left join of_events
    on of_events.project = sessions.project and of_events.session_id = sessions.session_id
left join of_screens
    on of_screens.project = sessions.project and of_screens.session_id = sessions.session_id
left join of_network
    on of_network.project = sessions.project and of_network.session_id = sessions.session_id
