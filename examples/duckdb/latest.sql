-- The files of target-jsonl as tables, without a load: the latest row of each key. Sessions
-- and events are views. Crash groups, which every run appends, come from the macro: `from
-- latest('output/crashes*.jsonl', ['$.id'])`; calls likewise.
--
-- A row that was loaded again stands in its file twice, since rows are only appended; the
-- last line of a key is the latest. Run this from the directory that holds `output/`, in
-- a database of DuckDB or in memory; the views read the files anew each time.

-- The latest rows of a file as JSON, by `arg_max`; keys are JSON paths. `from
-- latest('output/events*.jsonl', ['$.sessionId', '$.id'])` has the one column `line`.
create or replace macro latest(files, keys) as table
select arg_max(json, number) as line
from (
    select json, row_number() over () as number
    from read_ndjson_objects(files)
)
group by json_extract_string(json, keys);

-- The latest sessions with columns, by a window function. Columns are named one by one:
-- left to itself, DuckDB guesses types from the first rows.
create or replace view sessions as
select * exclude (number)
from (
    select *, row_number() over () as number
    from read_ndjson(
        'output/sessions*.jsonl',
        columns = {
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
            endedAt: 'timestamp',
            _extra: 'json'
        }
    )
)
qualify row_number() over (partition by id order by number desc) = 1;

-- The latest events with columns, from the macro.
create or replace view events as
select
    line ->> 'sessionId' as sessionId,
    line ->> 'id' as id,
    line ->> 'type' as type,
    (line ->> 'timestamp')::timestamp as timestamp,
    (line ->> 'sequenceNumber')::bigint as sequenceNumber,
    line -> 'data' as data
from latest('output/events*.jsonl', ['$.sessionId', '$.id']);
