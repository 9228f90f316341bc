-- The crash groups that hit most devices, and are not dealt with yet.
select
    project,
    message,
    platform,
    app_version,
    status,
    affected_devices,
    occurrence_count,
    is_fatal,
    first_seen_at,
    last_seen_at,
    id
from bugspulse_views.crashes
where status in ('open', 'acknowledged')  -- the others are resolved and ignored
order by affected_devices desc nulls last, occurrence_count desc nulls last, id
limit 10;
