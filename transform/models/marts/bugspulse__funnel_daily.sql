{{ config(
    materialized=bugspulse.growing(),
    incremental_strategy='delete+insert',
    unique_key=['project', 'day']
) }}

{% set steps = var('bugspulse_funnel') %}

with
{% if is_incremental() %}
touched as ({{ bugspulse.touched_days(ref('bugspulse__sessions')) }}
),
{% endif %}

screens as (
    select
        sessions.day,
        sessions.loaded_at,
        screens.project,
        screens.session_id,
        screens.screen_number,
        screens.screen
    from {{ ref('int_bugspulse__screens') }} as screens
    inner join {{ ref('bugspulse__sessions') }} as sessions
        on sessions.project = screens.project and sessions.session_id = screens.session_id
    {% if is_incremental() %}
    inner join touched on touched.project = sessions.project and touched.day = sessions.day
    {% endif %}
    where sessions.day is not null
),

days as (
    select project, day, max(loaded_at) as loaded_at
    from screens
    group by project, day
),

-- Where each session was on a step for the first time, after all steps before it.
{% for screen in steps %}
{% set name = dbt.string_literal(dbt.escape_single_quotes(screen)) %}
step_{{ loop.index }} as (
    select screens.project, screens.session_id, screens.day, min(screens.screen_number) as screen_number
    from screens
    {% if not loop.first %}
    inner join step_{{ loop.index - 1 }} as previous
        on previous.project = screens.project
        and previous.session_id = screens.session_id
        and previous.screen_number < screens.screen_number
    {% endif %}
    where screens.screen = {{ name }}
    group by screens.project, screens.session_id, screens.day
),
{% endfor %}

reached as (
    {% for screen in steps %}
    {% set name = dbt.string_literal(dbt.escape_single_quotes(screen)) %}
    select
        days.project,
        days.day,
        {{ loop.index }} as step,
        cast({{ name }} as {{ bugspulse.type_of('text') }}) as screen,
        count(reaching.session_id) as sessions,
        max(days.loaded_at) as loaded_at
    from days
    left join step_{{ loop.index }} as reaching
        on reaching.project = days.project and reaching.day = days.day
    group by days.project, days.day
    {% if not loop.last %}
    union all
    {% endif %}
    {% else %}
    select
        project,
        day,
        0 as step,
        cast('' as {{ bugspulse.type_of('text') }}) as screen,
        0 as sessions,
        loaded_at
    from days
    where 1 = 0
    {% endfor %}
)

select
    project,
    day,
    step,
    screen,
    sessions,
    {{ bugspulse.percent(
        'sessions', 'first_value(sessions) over (partition by project, day order by step)'
    ) }} as percent_of_first,
    {{ bugspulse.percent(
        'sessions', 'lag(sessions) over (partition by project, day order by step)'
    ) }} as percent_of_previous,
    loaded_at
from reached
