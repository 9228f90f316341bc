{{ config(
    materialized=bugspulse.growing(),
    incremental_strategy='delete+insert',
    unique_key=['project', 'day']
) }}

with
{% if is_incremental() %}
touched as ({{ bugspulse.touched_days(ref('bugspulse__sessions')) }}
),
{% endif %}

screens as (
    select
        screens.project,
        screens.session_id,
        sessions.day,
        screens.previous_screen,
        screens.screen,
        screens.next_screen,
        sessions.loaded_at
    from {{ ref('int_bugspulse__screens') }} as screens
    inner join {{ ref('bugspulse__sessions') }} as sessions
        on sessions.project = screens.project and sessions.session_id = screens.session_id
    {% if is_incremental() %}
    inner join touched on touched.project = sessions.project and touched.day = sessions.day
    {% endif %}
    where sessions.day is not null
),

flows as (
    select
        project,
        session_id,
        day,
        coalesce(previous_screen, '(start)') as from_screen,
        screen as to_screen,
        loaded_at
    from screens
    union all
    select project, session_id, day, screen as from_screen, '(end)' as to_screen, loaded_at
    from screens
    where next_screen is null
)

select
    project,
    day,
    from_screen,
    to_screen,
    count(*) as moves,
    count(distinct session_id) as sessions,
    max(loaded_at) as loaded_at
from flows
group by project, day, from_screen, to_screen
