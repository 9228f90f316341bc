{{ config(
    materialized=bugspulse.growing(),
    incremental_strategy='delete+insert',
    unique_key=['project', 'session_id']
) }}

{% if is_incremental() %}
with touched as (
    select distinct project, session_id
    from {{ ref('stg_bugspulse__events') }}
    where {{ bugspulse.is_new('loaded_at') }}
)
{% endif %}

select
    events.project,
    events.session_id,
    row_number() over (
        partition by events.project, events.session_id order by {{ bugspulse.event_order() }}
    ) as screen_number,
    events.what as screen,
    lag(events.what) over (
        partition by events.project, events.session_id order by {{ bugspulse.event_order() }}
    ) as previous_screen,
    lead(events.what) over (
        partition by events.project, events.session_id order by {{ bugspulse.event_order() }}
    ) as next_screen,
    events.occurred_at,
    events.loaded_at
from {{ ref('stg_bugspulse__events') }} as events
{% if is_incremental() %}
inner join touched
    on touched.project = events.project and touched.session_id = events.session_id
{% endif %}
where events.event_type = 'navigate' and events.what is not null
