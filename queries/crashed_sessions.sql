-- The latest ten sessions that crashed, each with its last ten events, in order.
with crashed as (
    select project, id, user_id, app_version, platform, started_at
    from bugspulse_views.sessions
    where has_crash
    order by started_at desc nulls last, id, project
    limit 10
),

numbered as (
    select
        project,
        session_id,
        sequence_number,
        timestamp,
        type,
        what,
        -- Events without a number are the first to be left out.
        row_number() over (
            partition by project, session_id
            order by
                sequence_number desc nulls last, timestamp desc nulls last, id desc
        ) as from_end
    from bugspulse_views.events
)

select
    crashed.project,
    crashed.id as session_id,
    crashed.user_id,
    crashed.app_version,
    crashed.platform,
    crashed.started_at,
    numbered.sequence_number,
    numbered.timestamp,
    numbered.type,
    numbered.what
from crashed
left join numbered
    on numbered.session_id = crashed.id
    and coalesce(numbered.project, '') = coalesce(crashed.project, '')
    and numbered.from_end <= 10
order by
    crashed.started_at desc nulls last,
    crashed.id,
    crashed.project,
    numbered.from_end desc;
