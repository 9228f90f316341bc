{#- How tables that grow are built.

    By the time of load and never by a device's clock: one phone that is a year ahead would end
    all updates, and the tap fills history in behind what is there. Where rows have no time of
    load, as in the files of target-jsonl, all is rebuilt. -#}

{% macro growing() %}
    {%- do return('table' if target.type == 'duckdb' else 'incremental') -%}
{% endmacro %}


{#- Whether a row, of a relation that has `loaded_at`, may be newer than this model. -#}
{% macro is_new(column) %}
    {% set newest = "coalesce(max(loaded_at), cast('1970-01-02' as " ~ bugspulse.type_of('instant') ~ "))" %}
    {%- do return(
        '(' ~ column ~ ' is null or ' ~ column ~ ' > (select '
        ~ bugspulse.hours_before(newest, var('bugspulse_overlap_hours')) ~ ' from ' ~ this ~ '))'
    ) -%}
{% endmacro %}


{#- The days of a model of sessions, to be joined, that may have changed since this one was
    built. A day is always built whole. -#}
{% macro touched_days(relation) %}
    {%- set days %}
    select distinct project, day
    from {{ relation }}
    where {{ bugspulse.is_new('loaded_at') }}
    {%- endset %}
    {%- do return(days) -%}
{% endmacro %}
