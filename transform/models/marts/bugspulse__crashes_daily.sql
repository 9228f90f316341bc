-- The API gives running totals only; what happened on a day is the difference between what
-- the snapshot kept. Of a group that was there when the snapshot began, the first count is
-- of an unknown time.
with versions as (
    select
        project,
        crash_id,
        status,
        occurrence_count,
        affected_devices,
        dbt_valid_from as counted_at,
        cast(dbt_valid_from as date) as day,
        min(cast(dbt_valid_from as date)) over (partition by project) as first_day,
        row_number() over (partition by project, crash_id order by dbt_valid_from) as version,
        row_number() over (
            partition by project, crash_id, cast(dbt_valid_from as date)
            order by dbt_valid_from desc
        ) as from_last_of_day,
        occurrence_count - lag(occurrence_count, 1, 0) over (
            partition by project, crash_id order by dbt_valid_from
        ) as new_occurrences,
        affected_devices - lag(affected_devices, 1, 0) over (
            partition by project, crash_id order by dbt_valid_from
        ) as new_devices
    from {{ ref('bugspulse__crash_history') }}
)

select
    project,
    day,
    crash_id,
    max(case when from_last_of_day = 1 then status end) as status,
    max(case when from_last_of_day = 1 then occurrence_count end) as occurrence_count,
    max(case when from_last_of_day = 1 then affected_devices end) as affected_devices,
    sum(case when version > 1 or day > first_day then new_occurrences end) as new_occurrences,
    sum(case when version > 1 or day > first_day then new_devices end) as new_devices
from versions
group by project, day, crash_id
