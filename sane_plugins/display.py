"""Representations of results, for the interpreter, for notebooks, for code and for pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from html import escape
from importlib.resources import files
from itertools import islice

from sane_plugins.errors import visible

_MAX_ROWS = 40
_MAX_REPR_LENGTH = 60


class ShortRepr:
    """A dataclass whose repr shows sizes instead of tensors, mappings and long sequences."""

    def __repr__(self) -> str:
        shown = [x.name for x in fields(self) if x.repr]  # type: ignore[arg-type]
        arguments = (f"{name}={_short_repr(getattr(self, name))}" for name in shown)
        return f"{type(self).__name__}({', '.join(arguments)})"


def _short_repr(value: object) -> str:
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
    return text if len(text) <= _MAX_REPR_LENGTH else f"<{type(value).__name__}>"


def _is_nested(value: Mapping[object, object] | Sequence[object]) -> bool:
    parts = value.values() if isinstance(value, Mapping) else value
    return not all(isinstance(part, str | int | float | None) for part in parts)


def literal(text: str) -> str:
    """Return text as a literal of Python, in double quotes where they do not occur in it."""
    written = repr(text)
    return f'"{written[1:-1]}"' if written[0] == "'" and '"' not in written else written


def percent_text(probability: float) -> str:
    """Return a probability in percent; of what is estimated, nothing is told beyond 1 and 99."""
    if 0.01 <= probability <= 0.99:
        return f"{probability:.0%}"
    return "over 99%" if probability > 0.5 else "under 1%"


def html_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table under a title, everything escaped; long ones end with the number of rows left."""
    rows = iter(rows)
    body = "".join(map(_row, islice(rows, _MAX_ROWS)))
    remaining = sum(1 for _ in rows)
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    return (
        f"<div><code>{_text(title)}</code><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        + (f"<p>and {remaining} more</p>" if remaining else "")
        + "</div>"
    )


def _row(cells: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>"


def _text(value: object) -> str:
    return escape(visible(str(value)))


def page_renderer(package: str, name: str, **globals_: object) -> Callable[..., str]:
    """Return what fills in a jinja2 template that lies in a package; every value is made visible and escaped.

    `globals_` are what its macros know too.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def finish(value: object) -> object:
        """Return a value as the page shows it, before it is escaped; macros give markup that is finished."""
        return value if isinstance(value, Markup) else visible(str(value))

    environment = Environment(
        autoescape=True,
        finalize=finish,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(globals_)
    render: Callable[..., str] = environment.from_string(
        (files(package) / name).read_text(encoding="utf-8")
    ).render
    return render
