{#- The rows whose columns are no row of another model; nulls belong to nothing. -#}
{% test belongs_to(model, columns, to) %}
select
    {% for column in columns %}child.{{ column }}{{ ', ' if not loop.last }}{% endfor %}
from {{ model }} as child
left join {{ to }} as parent
    on {% for column in columns %}parent.{{ column }} = child.{{ column }}
    {{ 'and ' if not loop.last }}{% endfor %}
where
    parent.{{ columns[0] }} is null
    {% for column in columns %}and child.{{ column }} is not null
    {% endfor %}
{% endtest %}
