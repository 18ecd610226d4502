"""How results look on a prompt and in a notebook: short, whatever they hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from html import escape
from itertools import islice

_ROWS = 40
_TEXT = 60


class ShortRepr:
    """A dataclass whose repr tells sizes instead of tensors, mappings and long sequences."""

    def __repr__(self) -> str:
        told = (f"{x.name}={_brief(getattr(self, x.name))}" for x in fields(self) if x.repr)  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(told)})"


def _brief(value: object) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"<{type(value).__name__} {tuple(shape)}>"
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        return (
            f"<{type(value).__name__} of {len(value)}>"
            if len(value) > 3 or _is_nested(value)
            else repr(value)
        )
    text = repr(value)
    return text if len(text) <= _TEXT else f"<{type(value).__name__}>"


def _is_nested(value: Mapping[object, object] | Sequence[object]) -> bool:
    parts = value.values() if isinstance(value, Mapping) else value
    return not all(isinstance(part, str | int | float | None) for part in parts)


def html_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table under a title, everything escaped; of long ones the first rows and how many follow."""
    rows = iter(rows)
    body = "".join(map(_row, islice(rows, _ROWS)))
    more = sum(1 for _ in rows)
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    return (
        f"<div><code>{escape(title)}</code><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        + (f"<p>and {more} more</p>" if more else "")
        + "</div>"
    )


def _row(cells: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>"
