{{ config(
    materialized=bugspulse.growing(),
    incremental_strategy='delete+insert',
    unique_key=['project', 'day']
) }}

-- depends_on: {{ ref('stg_bugspulse__network') }}
{{ bugspulse.endpoints_by('day') }}
