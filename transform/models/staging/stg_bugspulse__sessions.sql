with loaded as (
    {{ bugspulse.stream('sessions') }}
)

select
    loaded.*,
    cast(started_at as date) as day
from loaded
