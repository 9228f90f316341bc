{#- Calls, failures and percentiles of each endpoint, by day or by hour. Percentiles cannot be
    added up, so that both are made of the calls. Either way a day is built whole. -#}
{% macro endpoints_by(period) %}
{% if is_incremental() %}
with touched as ({{ bugspulse.touched_days(ref('stg_bugspulse__network')) }}
)
{% endif %}

select
    network.project,
    {% if period == 'hour' -%}
    network.hour,
    {% endif -%}
    network.day,
    coalesce(network.method, 'unknown') as method,
    coalesce(network.endpoint, 'unknown') as endpoint,
    count(*) as calls,
    count(case when network.has_failed then 1 end) as failed_calls,
    {{ bugspulse.percent('count(case when network.has_failed then 1 end)', 'count(*)') }}
        as failed_percent,
    {{ bugspulse.percentile_ms('0.5', 'network.duration_ms') }} as p50_ms,
    {{ bugspulse.percentile_ms('0.95', 'network.duration_ms') }} as p95_ms,
    {{ bugspulse.percentile_ms('0.99', 'network.duration_ms') }} as p99_ms,
    max(network.loaded_at) as loaded_at
from {{ ref('stg_bugspulse__network') }} as network
{% if is_incremental() %}
inner join touched on touched.project = network.project and touched.day = network.day
{% endif %}
where network.day is not null
group by
    network.project,
    {% if period == 'hour' -%}
    network.hour,
    {% endif -%}
    network.day,
    coalesce(network.method, 'unknown'),
    coalesce(network.endpoint, 'unknown')
{% endmacro %}
