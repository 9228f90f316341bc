{% snapshot bugspulse__crash_history %}

{{ config(
    strategy='check',
    unique_key=['project', 'crash_id'],
    check_cols=['status', 'occurrence_count', 'affected_devices'],
    updated_at='counted_at'
) }}

select
    crashes.*,
    coalesce(crashes.loaded_at, {{ bugspulse.utc_now() }}) as counted_at
from {{ ref('stg_bugspulse__crashes') }} as crashes

{% endsnapshot %}
