{#- What Snowflake, Postgres and DuckDB spell in different ways. -#}

{% macro type_of(type) %}
    {% do return(adapter.dispatch('type_of', 'bugspulse')(type)) %}
{% endmacro %}

{% macro default__type_of(type) %}
    {% do return({
        'text': 'text', 'integer': 'bigint', 'boolean': 'boolean', 'instant': 'timestamp',
        'json': 'jsonb'
    }[type]) %}
{% endmacro %}

{% macro duckdb__type_of(type) %}
    {% do return({
        'text': 'varchar', 'integer': 'bigint', 'boolean': 'boolean', 'instant': 'timestamp',
        'json': 'json'
    }[type]) %}
{% endmacro %}

{% macro snowflake__type_of(type) %}
    {% do return({
        'text': 'varchar', 'integer': 'number(38, 0)', 'boolean': 'boolean',
        'instant': 'timestamp_ntz', 'json': 'variant'
    }[type]) %}
{% endmacro %}


{#- An instant as the clock shows it in UTC, without a zone. -#}
{% macro as_utc(column) %}
    {% do return(adapter.dispatch('as_utc', 'bugspulse')(column)) %}
{% endmacro %}

{% macro default__as_utc(column) %}
    {% if 'with time zone' in column.dtype | lower or 'timestamptz' in column.dtype | lower %}
        {% do return(column.quoted ~ " at time zone 'UTC'") %}
    {% endif %}
    {% do return(column.quoted) %}
{% endmacro %}

{% macro snowflake__as_utc(column) %}
    {% if 'TIMESTAMP_TZ' in column.dtype | upper or 'TIMESTAMP_LTZ' in column.dtype | upper %}
        {% do return("convert_timezone('UTC', " ~ column.quoted ~ ")::timestamp_ntz") %}
    {% endif %}
    {% do return(column.quoted) %}
{% endmacro %}


{#- Now, in UTC, without a zone. -#}
{% macro utc_now() %}
    {% do return(adapter.dispatch('utc_now', 'bugspulse')()) %}
{% endmacro %}

{% macro default__utc_now() %}
    {% do return("cast(current_timestamp at time zone 'UTC' as timestamp)") %}
{% endmacro %}

{% macro snowflake__utc_now() %}
    {% do return("convert_timezone('UTC', current_timestamp())::timestamp_ntz") %}
{% endmacro %}


{#- A field of a JSON object as text, null where it is not there or null. -#}
{% macro json_text(column, field) %}
    {% do return(adapter.dispatch('json_text', 'bugspulse')(column, field)) %}
{% endmacro %}

{% macro default__json_text(column, field) %}
    {% do return("(" ~ column ~ " ->> '" ~ field ~ "')") %}
{% endmacro %}

{% macro snowflake__json_text(column, field) %}
    {% do return(column ~ "['" ~ field ~ "']::varchar") %}
{% endmacro %}


{#- The endpoint that a URL belongs to: no query, no fragment, `:id` for each part of the path
    that is an identifier. Two identifiers in a row take two passes. -#}
{% macro endpoint(url) %}
    {% do return(adapter.dispatch('endpoint', 'bugspulse')(url)) %}
{% endmacro %}

{% macro default__endpoint(url) %}
    {% set path = "split_part(split_part(" ~ url ~ ", '?', 1), '#', 1)" %}
    {% set id = "'/(" ~ var('bugspulse_id_pattern') ~ ")(/|$)', '/:id\\2', 'g')" %}
    {% do return('regexp_replace(regexp_replace(' ~ path ~ ', ' ~ id ~ ', ' ~ id) %}
{% endmacro %}

{% macro snowflake__endpoint(url) %}
    {% set path = "split_part(split_part(" ~ url ~ ", '?', 1), '#', 1)" %}
    {% set id = "'/(" ~ var('bugspulse_id_pattern') | replace('\\', '\\\\') ~ ")(/|$)', '/:id\\\\2')" %}
    {% do return('regexp_replace(regexp_replace(' ~ path ~ ', ' ~ id ~ ', ' ~ id) %}
{% endmacro %}


{#- A text as it is ordered: by its bytes, whatever the language of the database. -#}
{% macro ordered(column) %}
    {% do return(adapter.dispatch('ordered', 'bugspulse')(column)) %}
{% endmacro %}

{% macro default__ordered(column) %}
    {% do return(column) %}
{% endmacro %}

{% macro postgres__ordered(column) %}
    {% do return(column ~ ' collate "C"') %}
{% endmacro %}


{#- The milliseconds from one instant to a later one. -#}
{% macro milliseconds_between(from, to) %}
    {% do return(adapter.dispatch('milliseconds_between', 'bugspulse')(from, to)) %}
{% endmacro %}

{% macro default__milliseconds_between(from, to) %}
    {% do return('cast(round(extract(epoch from ' ~ to ~ ' - ' ~ from ~ ') * 1000) as bigint)') %}
{% endmacro %}

{% macro duckdb__milliseconds_between(from, to) %}
    {% do return("date_diff('millisecond', " ~ from ~ ", " ~ to ~ ")") %}
{% endmacro %}

{% macro snowflake__milliseconds_between(from, to) %}
    {% do return("datediff('millisecond', " ~ from ~ ", " ~ to ~ ")") %}
{% endmacro %}


{#- An instant some hours before another. -#}
{% macro hours_before(instant, hours) %}
    {% do return(adapter.dispatch('hours_before', 'bugspulse')(instant, hours)) %}
{% endmacro %}

{% macro default__hours_before(instant, hours) %}
    {% do return(instant ~ " - interval '" ~ hours ~ " hours'") %}
{% endmacro %}

{% macro snowflake__hours_before(instant, hours) %}
    {% do return("dateadd('hour', -" ~ hours ~ ", " ~ instant ~ ")") %}
{% endmacro %}
