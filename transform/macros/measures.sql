{#- A share in percent with two places; of nothing there is none.

    The cast takes away what binary fractions leave over, so that half is rounded up
    everywhere. -#}
{% macro percent(part, whole) %}
    {%- do return(
        'round(cast(100.0 * ' ~ part ~ ' / nullif(' ~ whole ~ ', 0) as decimal(18, 6)), 2)'
    ) -%}
{% endmacro %}


{#- A percentile of whole milliseconds, as whole milliseconds. -#}
{% macro percentile_ms(share, column) %}
    {%- do return(
        'cast(round(cast(percentile_cont(' ~ share ~ ') within group (order by ' ~ column
        ~ ') as decimal(18, 3))) as bigint)'
    ) -%}
{% endmacro %}


{#- The order of a session's events. The number is the SDK's, no clock can disturb it; the
    others only decide between events that have the same one, or none. -#}
{% macro event_order(descending=false) %}
    {%- set way = ' desc' if descending else '' -%}
    {%- do return(
        'coalesce(sequence_number, -1)' ~ way ~ ", coalesce(occurred_at, cast('1970-01-01' as "
        ~ bugspulse.type_of('instant') ~ '))' ~ way ~ ', ' ~ bugspulse.ordered('event_id') ~ way
    ) -%}
{% endmacro %}
