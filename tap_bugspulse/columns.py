"""What makes a row of the API fit the columns of its table."""

from __future__ import annotations

import typing as t
from collections import Counter

import msgspec
from msgspec.structs import asdict

from tap_bugspulse.replication import format_instant, parse_instant

if t.TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Row = dict[str, t.Any]
    Fit = Callable[[t.Any], t.Any]

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
# The types of what a decoder takes for a column, by the column's format or type.
_TYPES: dict[str, t.Any] = {
    "key": t.Annotated[str, msgspec.Meta(min_length=1)] | None,
    "string": str | None,
    "date-time": str | None,
    "integer": int | None,
    "boolean": bool | None,
    "object": dict | None,
}


def sent(raw: object, column: str) -> t.Any:  # noqa: ANN401 - whatever the API sends
    """Give what a row of a page has for a column, None where it has nothing."""
    return raw.get(column) if isinstance(raw, dict) else getattr(raw, column, None)


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
        self._own = {EXTRA: None} if project is None else {EXTRA: None, PROJECT: project}
        self._key = keys[-1]  # a listing of events is of one session
        self._instants = [n for n, kind in self._kinds.items() if kind == "date-time"]
        # What rows are decoded into where all of them have these types and no other
        # column: then only their instants are left to be looked at.
        self.row_type = msgspec.defstruct(
            "Row",
            [(name, _TYPES[kind], None) for name, kind in self._kinds.items()],
            forbid_unknown_fields=True,
            gc=False,  # rows of JSON leave no cycles behind
        )

    def keys(self, rows: list[t.Any]) -> list[str | None]:
        """Give what tells the rows of a listing apart, None where a row has no key.

        Args:
            rows: All of ``row_type``, or whatever the API sent.
        """
        if rows and isinstance(rows[0], self.row_type):
            return [getattr(raw, self._key) for raw in rows]
        return [_FITS["key"](sent(raw, self._key)) for raw in rows]

    def fit(self, raw: t.Any) -> Row:  # noqa: ANN401 - whatever the API sends
        """Give a row that fits.

        What has no column, and values that do not fit theirs, are kept in ``_extra``.

        Args:
            raw: A ``row_type`` or a mapping.
        """
        if not isinstance(raw, self.row_type):
            return self._fit_any(raw)
        row: Row = asdict(raw)
        for name in self._instants:
            text = row[name]
            if text is None or (text.endswith("Z") and parse_instant(text)):
                continue  # as the API writes it
            row[name] = _instant(text)
            if row[name] is None:
                return self._fit_any(asdict(raw))
        row.update(self._own)
        return row

    def _fit_any(self, raw: Row) -> Row:
        row: Row = {**dict.fromkeys(self._kinds), **self._own}
        extra = {}
        for name, value in raw.items():
            kind = self._kinds.get(name)
            if kind is None:
                self._has_no_column(name)
                extra[name] = value
            elif value is not None:
                row[name] = _FITS[kind](value)
                if row[name] is None:
                    self.misfits[name] += 1
                    extra[name] = value
        row[EXTRA] = extra or None
        return row


def _kind(column: Mapping[str, t.Any], *, is_key: bool) -> str:
    """Give the name of what makes a value fit a column."""
    kind = column["type"][0] if isinstance(column["type"], list) else "key"
    return str(column.get("format", "key" if is_key else kind))
