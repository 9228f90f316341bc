with loaded as (
    {{ bugspulse.stream('network') }}
)

select
    loaded.*,
    cast(called_at as date) as day,
    date_trunc('hour', called_at) as hour,
    {{ bugspulse.endpoint('url') }} as endpoint,
    error is not null or status_code is null or status_code >= 400 as has_failed
from loaded
