-- The files of target-jsonl under names that are the same in Snowflake, Postgres and
-- DuckDB. Run it once in a database file, from the directory that holds `output/`.
--
-- A row that was loaded again is in its file twice; the last line of a key is the latest.
-- Columns are named one by one, so that a field that is missing or always null, or not
-- selected, is a column of nulls; `project` too.
create schema if not exists bugspulse_views;

create or replace view bugspulse_views.sessions as
select
    project,
    id,
    "userId" as user_id,
    status,
    platform,
    "osVersion" as os_version,
    "appVersion" as app_version,
    "networkType" as network_type,
    "eventCount" as event_count,
    "hasCrash" as has_crash,
    "hasNetworkErrors" as has_network_errors,
    duration,
    "startedAt" as started_at,
    "endedAt" as ended_at,
    "startedAt"::date as day
from (
    select *, row_number() over () as line
    from read_json(
        'output/sessions*.jsonl',
        format = 'newline_delimited',
        columns = {
            project: 'varchar',
            id: 'varchar',
            userId: 'varchar',
            status: 'varchar',
            platform: 'varchar',
            osVersion: 'varchar',
            appVersion: 'varchar',
            networkType: 'varchar',
            eventCount: 'bigint',
            hasCrash: 'boolean',
            hasNetworkErrors: 'boolean',
            duration: 'bigint',
            startedAt: 'timestamp',
            endedAt: 'timestamp'
        }
    )
)
qualify row_number() over (partition by project, id order by line desc) = 1;

create or replace view bugspulse_views.crashes as
select
    project,
    id,
    message,
    status,
    "isFatal" as is_fatal,
    handled,
    "occurrenceCount" as occurrence_count,
    "affectedDevices" as affected_devices,
    platform,
    "appVersion" as app_version,
    "osVersion" as os_version,
    "firstSeenAt" as first_seen_at,
    "lastSeenAt" as last_seen_at
from (
    select *, row_number() over () as line
    from read_json(
        'output/crashes*.jsonl',
        format = 'newline_delimited',
        columns = {
            project: 'varchar',
            id: 'varchar',
            message: 'varchar',
            status: 'varchar',
            isFatal: 'boolean',
            handled: 'boolean',
            occurrenceCount: 'bigint',
            affectedDevices: 'bigint',
            platform: 'varchar',
            appVersion: 'varchar',
            osVersion: 'varchar',
            firstSeenAt: 'timestamp',
            lastSeenAt: 'timestamp'
        }
    )
)
qualify row_number() over (partition by project, id order by line desc) = 1;

-- `what` is the screen, the thing tapped, the name or the message of an event.
create or replace view bugspulse_views.events as
select
    project,
    "sessionId" as session_id,
    id,
    type,
    "timestamp",
    "sequenceNumber" as sequence_number,
    data,
    coalesce(
        data ->> 'to', data ->> 'target', data ->> 'name', data ->> 'message'
    ) as what
from (
    select *, row_number() over () as line
    from read_json(
        'output/events*.jsonl',
        format = 'newline_delimited',
        columns = {
            project: 'varchar',
            sessionId: 'varchar',
            id: 'varchar',
            type: 'varchar',
            timestamp: 'timestamp',
            sequenceNumber: 'bigint',
            data: 'json'
        }
    )
)
qualify row_number() over (partition by project, "sessionId", id order by line desc) = 1;

-- `endpoint` has no query and no ids: a part of the path that is a number, or 16 or more
-- hexadecimal digits and dashes (a UUID), is `:id`. Two ids in a row take two passes.
create or replace view bugspulse_views.network as
select
    project,
    id,
    "sessionId" as session_id,
    method,
    url,
    "statusCode" as status_code,
    duration,
    error,
    "timestamp",
    "timestamp"::date as day,
    regexp_replace(
        regexp_replace(
            split_part(split_part(url, '?', 1), '#', 1),
            '/([0-9]+|[0-9a-fA-F-]{16,})(/|$)',
            '/:id\2',
            'g'
        ),
        '/([0-9]+|[0-9a-fA-F-]{16,})(/|$)',
        '/:id\2',
        'g'
    ) as endpoint,
    error is not null or "statusCode" is null or "statusCode" >= 400 as failed
from (
    select *, row_number() over () as line
    from read_json(
        'output/network*.jsonl',
        format = 'newline_delimited',
        columns = {
            project: 'varchar',
            id: 'varchar',
            sessionId: 'varchar',
            method: 'varchar',
            url: 'varchar',
            statusCode: 'bigint',
            duration: 'bigint',
            error: 'varchar',
            timestamp: 'timestamp'
        }
    )
)
qualify row_number() over (partition by project, id order by line desc) = 1;

-- The screens of a session in order, as |Home||Search||Product|; those without a number last.
create or replace view bugspulse_views.journeys as
select
    project,
    session_id,
    min("timestamp")::date as day,
    string_agg(
        '|' || replace(what, '|', '/') || '|',
        ''
        order by sequence_number nulls last, "timestamp" nulls last, id
    ) as screens
from bugspulse_views.events
where type = 'navigate' and what is not null
group by project, session_id;

-- The day it is now, UTC.
create or replace view bugspulse_views.today as
select (current_timestamp at time zone 'UTC')::date as day;
