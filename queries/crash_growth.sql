-- How often each crash group has happened since the day before that was kept. Of the first
-- day that was kept there is nothing to compare with; a group that is new counts in full.
with compared as (
    select
        project,
        day,
        id,
        message,
        status,
        occurrence_count,
        affected_devices,
        lag(occurrence_count, 1, 0) over (partition by project, id order by day)
            as occurrences_before,
        lag(affected_devices, 1, 0) over (partition by project, id order by day)
            as devices_before,
        min(day) over (partition by project) as first_day
    from bugspulse_history.crashes
)

select
    project,
    day,
    id,
    message,
    status,
    occurrence_count,
    affected_devices,
    occurrence_count - occurrences_before as new_occurrences,
    affected_devices - devices_before as new_devices
from compared
where day > first_day and occurrence_count <> occurrences_before
order by project, day desc, new_occurrences desc, id;
