-- The loaded tables under names that are the same in Snowflake, Postgres and DuckDB.
-- Run it once, in the database that target-snowflake loads into; views hold no data.
--
-- BUGSPULSE is `default_target_schema`. Loaded with the setting `project`? Then write
-- `project` for each `null::varchar as project`.
create schema if not exists bugspulse_views;

create or replace view bugspulse_views.sessions as
select
    null::varchar as project,
    id,
    user_id,
    status,
    platform,
    os_version,
    app_version,
    network_type,
    event_count,
    has_crash,
    has_network_errors,
    duration,
    started_at,
    ended_at,
    started_at::date as day
from bugspulse.sessions;

create or replace view bugspulse_views.crashes as
select
    null::varchar as project,
    id,
    message,
    status,
    is_fatal,
    handled,
    occurrence_count,
    affected_devices,
    platform,
    app_version,
    os_version,
    first_seen_at,
    last_seen_at
from bugspulse.crashes;

-- `what` is the screen, the thing tapped, the name or the message of an event.
create or replace view bugspulse_views.events as
select
    null::varchar as project,
    session_id,
    id,
    type,
    timestamp,
    sequence_number,
    data,
    coalesce(
        data['to']::varchar,
        data['target']::varchar,
        data['name']::varchar,
        data['message']::varchar
    ) as what
from bugspulse.events;

-- `endpoint` has no query and no ids: a part of the path that is a number, or 16 or more
-- hexadecimal digits and dashes (a UUID), is `:id`. Two ids in a row take two passes.
create or replace view bugspulse_views.network as
select
    null::varchar as project,
    id,
    session_id,
    method,
    url,
    status_code,
    duration,
    error,
    timestamp,
    timestamp::date as day,
    regexp_replace(
        regexp_replace(
            split_part(split_part(url, '?', 1), '#', 1),
            '/([0-9]+|[0-9a-fA-F-]{16,})(/|$)',
            '/:id\\2'
        ),
        '/([0-9]+|[0-9a-fA-F-]{16,})(/|$)',
        '/:id\\2'
    ) as endpoint,
    error is not null or status_code is null or status_code >= 400 as failed
from bugspulse.network;

-- The screens of a session in order, as |Home||Search||Product|; those without a number last.
create or replace view bugspulse_views.journeys as
select
    project,
    session_id,
    min(timestamp)::date as day,
    listagg('|' || replace(what, '|', '/') || '|', '')
        within group (order by sequence_number nulls last, timestamp nulls last, id)
        as screens
from bugspulse_views.events
where type = 'navigate' and what is not null
group by project, session_id;

-- The day it is now, UTC.
create or replace view bugspulse_views.today as
select convert_timezone('UTC', current_timestamp())::date as day;
