-- Crash groups carry no session, so that those are matched by what they have in common.
with matching as (
    select
        project,
        platform,
        app_version,
        crash_message,
        session_id,
        count(*) over (partition by project, platform, app_version, crash_message)
            as sessions,
        row_number() over (
            partition by project, platform, app_version, crash_message
            order by started_at desc, {{ bugspulse.ordered('session_id') }}
        ) as from_latest
    from {{ ref('bugspulse__sessions') }}
    where crash_message is not null and started_at is not null
)

select
    crashes.project,
    crashes.crash_id,
    crashes.message,
    crashes.status,
    crashes.status in ('open', 'acknowledged') as is_open,
    crashes.is_fatal,
    crashes.is_handled,
    crashes.platform,
    crashes.app_version,
    crashes.os_version,
    crashes.occurrence_count,
    crashes.affected_devices,
    crashes.first_seen_at,
    crashes.last_seen_at,
    coalesce(matching.sessions, 0) as matching_sessions,
    matching.session_id as latest_matching_session_id
from {{ ref('stg_bugspulse__crashes') }} as crashes
left join matching
    on matching.project = crashes.project
    and matching.platform = crashes.platform
    and matching.app_version = crashes.app_version
    and matching.crash_message = crashes.message
    and matching.from_latest = 1
