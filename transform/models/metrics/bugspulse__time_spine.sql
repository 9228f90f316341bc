{{ config(
    enabled=(var('bugspulse_metrics') | as_bool) and (var('bugspulse_time_spine') | as_bool)
) }}

{% set type = bugspulse.type_of('instant') %}
{% set begin = "cast('2020-01-01' as " ~ type ~ ")" %}
{% set end = "cast('" ~ (run_started_at.year + 2) ~ "-01-01' as " ~ type ~ ")" %}

select cast(date_hour as {{ type }}) as hour
from (
    {{ dbt.date_spine('hour', begin, end) }}
) as hours
