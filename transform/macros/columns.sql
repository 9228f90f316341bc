{#- The columns of a stream: [name here, name in the API, type, part of the key]. -#}
{% macro stream_columns(stream) %}
    {% set columns = {
        'sessions': [
            ['project', 'project', 'text', true],
            ['session_id', 'id', 'text', true],
            ['user_id', 'userId', 'text', false],
            ['status', 'status', 'text', false],
            ['platform', 'platform', 'text', false],
            ['os_version', 'osVersion', 'text', false],
            ['app_version', 'appVersion', 'text', false],
            ['network_type', 'networkType', 'text', false],
            ['event_count', 'eventCount', 'integer', false],
            ['has_crash', 'hasCrash', 'boolean', false],
            ['has_network_errors', 'hasNetworkErrors', 'boolean', false],
            ['duration_ms', 'duration', 'integer', false],
            ['started_at', 'startedAt', 'instant', false],
            ['ended_at', 'endedAt', 'instant', false],
        ],
        'events': [
            ['project', 'project', 'text', true],
            ['session_id', 'sessionId', 'text', true],
            ['event_id', 'id', 'text', true],
            ['event_type', 'type', 'text', false],
            ['occurred_at', 'timestamp', 'instant', false],
            ['sequence_number', 'sequenceNumber', 'integer', false],
            ['data', 'data', 'json', false],
        ],
        'crashes': [
            ['project', 'project', 'text', true],
            ['crash_id', 'id', 'text', true],
            ['message', 'message', 'text', false],
            ['status', 'status', 'text', false],
            ['is_fatal', 'isFatal', 'boolean', false],
            ['is_handled', 'handled', 'boolean', false],
            ['occurrence_count', 'occurrenceCount', 'integer', false],
            ['affected_devices', 'affectedDevices', 'integer', false],
            ['platform', 'platform', 'text', false],
            ['app_version', 'appVersion', 'text', false],
            ['os_version', 'osVersion', 'text', false],
            ['first_seen_at', 'firstSeenAt', 'instant', false],
            ['last_seen_at', 'lastSeenAt', 'instant', false],
        ],
        'network': [
            ['project', 'project', 'text', true],
            ['call_id', 'id', 'text', true],
            ['session_id', 'sessionId', 'text', false],
            ['method', 'method', 'text', false],
            ['url', 'url', 'text', false],
            ['status_code', 'statusCode', 'integer', false],
            ['duration_ms', 'duration', 'integer', false],
            ['error', 'error', 'text', false],
            ['called_at', 'timestamp', 'instant', false],
        ],
    } %}
    {% do return(columns[stream]) %}
{% endmacro %}


{#- The rows of a stream, its columns under the names of this package.

    Targets spell a column STARTED_AT, "startedAt" or startedAt: each is found by its name in
    lower case without `_`. A column that is not there is null, and a table that is not there
    has no rows. `project` is an empty text where it is not set, so that it can be part of a
    key. `loaded_at` is when the target wrote the row, in UTC; null where it does not say. -#}
{% macro stream(name) %}
    {#- Named while dbt parses as well, so that it knows what the model is made of. -#}
    {% set table = source('bugspulse', name) %}
    {% if not execute %}
        {% do return('select 1 as parsing') %}
    {% endif %}
    {% set relation = load_relation(table) %}
    {% if relation is none and target.type == 'duckdb' %}
        {% do return(bugspulse.stream_in_files(name)) %}
    {% endif %}
    {% if relation is none %}
        {% do exceptions.warn(
            table ~ ' is not there, so all that is made of it is empty. Is bugspulse_schema the '
            ~ 'schema that the target loads into?'
        ) %}
        {% do return(bugspulse.nothing(name)) %}
    {% endif %}

    {% set found = {} %}
    {% for column in adapter.get_columns_in_relation(relation) %}
        {% do found.update({column.name | lower | replace('_', ''): column}) %}
    {% endfor %}
    {% set metadata = [['loaded_at', '_sdc_batched_at', 'instant', false]] %}
    {% set selected = [] %}
    {% for column, field, type, _ in bugspulse.stream_columns(name) + metadata %}
        {% set source_column = found.get(field | lower | replace('_', '')) %}
        {% do selected.append(bugspulse.column_of(source_column, column, type)) %}
    {% endfor %}
    {% do return('select\n    ' ~ selected | join(',\n    ') ~ '\nfrom ' ~ relation) %}
{% endmacro %}


{#- One column of a loaded table, under its name here. -#}
{% macro column_of(found, name, type) %}
    {% if found is none %}
        {% set value = 'cast(null as ' ~ bugspulse.type_of(type) ~ ')' %}
    {% elif type == 'instant' %}
        {% set value = bugspulse.as_utc(found) %}
    {% else %}
        {% set value = found.quoted %}
    {% endif %}
    {% if name == 'project' %}
        {% set value = "coalesce(" ~ value ~ ", '')" %}
    {% endif %}
    {% do return(value ~ ' as ' ~ name) %}
{% endmacro %}


{#- The rows of a stream in the files that target-jsonl writes.

    Rows are only appended, so the last line of a key is the latest row. -#}
{% macro stream_in_files(name) %}
    {% set files = var('bugspulse_files') ~ '/' ~ name ~ '*.jsonl' %}
    {% if run_query("select count(*) from glob('" ~ files ~ "')").columns[0].values()[0] == 0 %}
        {% do exceptions.warn(
            'There is no ' ~ files ~ ', so all that is made of it is empty. Is bugspulse_files '
            ~ 'the directory that target-jsonl writes to?'
        ) %}
        {% do return(bugspulse.nothing(name)) %}
    {% endif %}
    {% set fields, selected, keys = [], [], [] %}
    {% for column, field, type, is_key in bugspulse.stream_columns(name) %}
        {% do fields.append(field ~ ": '" ~ bugspulse.type_of(type) ~ "'") %}
        {% set value = '"' ~ field ~ '"' %}
        {% do selected.append(
            ("coalesce(" ~ value ~ ", '')" if field == 'project' else value) ~ ' as ' ~ column
        ) %}
        {% if is_key %}
            {% do keys.append(value) %}
        {% endif %}
    {% endfor %}
    {% set rows %}
select
    {{ selected | join(',\n    ') }},
    cast(null as timestamp) as loaded_at
from (
    select *, row_number() over () as line
    from read_json(
        '{{ files }}',
        format = 'newline_delimited',
        columns = { {{ fields | join(', ') }} }
    )
)
qualify row_number() over (partition by {{ keys | join(', ') }} order by line desc) = 1
    {% endset %}
    {% do return(rows) %}
{% endmacro %}


{#- A stream without rows, all its columns with their types. -#}
{% macro nothing(name) %}
    {% set selected = [] %}
    {% for column, _, type, _ in bugspulse.stream_columns(name) + [['loaded_at', '', 'instant', false]] %}
        {% do selected.append('cast(null as ' ~ bugspulse.type_of(type) ~ ') as ' ~ column) %}
    {% endfor %}
    {% do return('select\n    ' ~ selected | join(',\n    ') ~ '\nfrom (select 1 as one) as nothing\nwhere 1 = 0') %}
{% endmacro %}
