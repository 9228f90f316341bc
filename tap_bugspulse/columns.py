"""What makes a row of the API fit the columns of its table."""

from __future__ import annotations

import typing as t
from collections import Counter

from tap_bugspulse.replication import format_instant, parse_instant

if t.TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Row = dict[str, t.Any]
    Fit = Callable[[t.Any], t.Any]

MOST_ALIKE = 1000  # combinations of columns and types that are remembered
EXTRA = "_extra"  # the column that keeps what has no column
PROJECT = "project"
PROJECT_COLUMN = {
    "type": "string",
    "description": "Name of the BugsPulse project, from the setting project.",
}


def _instant(value: t.Any) -> str | None:  # noqa: ANN401 - whatever the API sends
    instant = parse_instant(value)
    if instant is None or value.endswith("Z"):
        return value if instant else None
    return format_instant(instant)


def _whole(value: t.Any) -> int | None:  # noqa: ANN401 - whatever the API sends
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


# What makes a value fit a column, by the column's format or type; None where it does not.
_FITS: dict[str, Fit] = {
    "key": lambda value: str(value) if type(value) in {str, int} and value != "" else None,
    "string": lambda value: value if isinstance(value, str) else None,
    "date-time": _instant,
    "integer": _whole,
    "boolean": lambda value: value if isinstance(value, bool) else None,
    "object": lambda value: value if isinstance(value, dict) else None,
}
# The type whose values all fit; others are looked at one by one.
_SURE = {"string": str, "integer": int, "boolean": bool, "object": dict}


class Columns:
    """The columns of one table, and how rows of the API are made to fit them."""

    def __init__(
        self,
        properties: Mapping[str, t.Any],
        keys: Sequence[str],
        project: str | None,
        has_no_column: Callable[[str], None],
    ) -> None:
        """Read the columns' types.

        Args:
            properties: The columns as JSON Schema, by name.
            keys: The API's own columns that make up the primary key.
            project: What every row carries in ``project``, None without that column.
            has_no_column: Is told the name of what a row has and the table has not.
        """
        self.misfits: Counter[str] = Counter()  # values that did not fit, by column
        self._has_no_column = has_no_column
        self._kinds = {
            name: _kind(column, is_key=name in keys)
            for name, column in properties.items()
            if name not in {EXTRA, PROJECT}
        }
        own = {EXTRA: None} if project is None else {EXTRA: None, PROJECT: project}
        self._empty: Row = {**dict.fromkeys(self._kinds), **own}
        self._alike: dict[tuple[t.Any, ...], list[tuple[str, Fit]]] = {}

    def fit(self, raw: Row) -> Row:
        """Give a row that fits.

        What has no column, and values that do not fit theirs, are kept in ``_extra``.
        """
        # Rows with the same columns and types differ only in values to be looked at.
        alike = (*raw, *map(type, raw.values()))
        doubtful = self._alike.get(alike)
        if doubtful is not None:
            row: Row = {**self._empty, **raw}
            for name, fit in doubtful:
                row[name] = fit(raw[name])
                if row[name] is None:
                    break
            else:
                return row
        return self._fit_any(raw, alike)

    def _fit_any(self, raw: Row, alike: tuple[t.Any, ...]) -> Row:
        row, extra = self._empty.copy(), {}
        doubtful = []
        for name, value in raw.items():
            kind = self._kinds.get(name)
            if kind is None:
                self._has_no_column(name)
                extra[name] = value
            elif value is not None:
                fit = _FITS[kind]
                row[name] = fit(value)
                if row[name] is None:
                    self.misfits[name] += 1
                    extra[name] = value
                if type(value) is not _SURE.get(kind):
                    doubtful.append((name, fit))
        row[EXTRA] = extra or None
        if not extra and len(self._alike) < MOST_ALIKE:
            self._alike[alike] = doubtful
        return row


def _kind(column: Mapping[str, t.Any], *, is_key: bool) -> str:
    """Give the name of what makes a value fit a column."""
    kind = column["type"][0] if isinstance(column["type"], list) else "key"
    return str(column.get("format", "key" if is_key else kind))
