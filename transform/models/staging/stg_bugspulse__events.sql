with loaded as (
    {{ bugspulse.stream('events') }}
),

named as (
    select
        loaded.*,
        {{ bugspulse.json_text('data', 'to') }} as to_screen,
        {{ bugspulse.json_text('data', 'target') }} as target_name,
        {{ bugspulse.json_text('data', 'name') }} as event_name,
        {{ bugspulse.json_text('data', 'message') }} as message
    from loaded
)

select
    project,
    session_id,
    event_id,
    event_type,
    occurred_at,
    sequence_number,
    data,
    case
        when event_type in ('crash', 'error') then coalesce(message, event_name)
        else coalesce(to_screen, target_name, event_name, message)
    end as what,
    loaded_at
from named
