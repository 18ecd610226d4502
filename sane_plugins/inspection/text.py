"""A survey in words: a table of layers, and a line for each thing to know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sane_plugins.inspection.survey import LayerStats, Portion, Survey, percent
from sane_plugins.inspection.tensor_stats import TensorStats

_NO_TOPOLOGY = "no topology: "  # how a note begins that gives the reason
MAX_TABLE_LAYERS = 40  # layers of a table that is shown whole
_ENDS = 15  # layers shown at either end of a long table
_MAX_NAME = 32  # characters of a name
_ALIKE = 3  # from so many tensors of one shape on, their names are left out
_COLUMNS = (
    "layer",
    "kind",
    "tensors",
    "parameters",
    "share %",
    "type",
    "rms",
    "bias rms",
    "zeros %",
)


class Table(NamedTuple):
    """A title, the names of columns, and a row of cells for each line."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def layer_table(survey: Survey, limit: int | None = MAX_TABLE_LAYERS) -> Table:
    """Return a table with a row for each layer; of one that is longer than `limit`, its two ends."""
    marks = {portion.reason: f"[{i}]" for i, portion in enumerate(survey.converted, 1)}
    rows = [_row(layer, survey, marks) for layer in survey.layers]
    if limit is not None and len(rows) > limit:
        between = survey.layers[_ENDS:-_ENDS]
        size = sum(layer.parameters for layer in between)
        share = f"{100 * size / survey.total:.2f}"
        left = (f"... {len(between)} more", "", "see --all-layers", f"{size:,}", share, *[""] * 4)
        rows = [*rows[:_ENDS], left, *rows[-_ENDS:]]
    return Table(f"{survey.source} ({survey.container})", _COLUMNS, rows)


def summary_lines(survey: Survey) -> Iterator[str]:
    """Yield a line for each thing to know: coverage, topology, zeros, tokens, ties and notes."""
    types = ", ".join(survey.dtypes)
    yield (
        f"{survey.parameters:,} parameters ({types}) in {_count(len(survey.tensors), 'tensor')} of"
        f" {_count(len(survey.layers), 'layer')}."
    )
    if len(survey.dtypes) > 1:
        each = [f"{x} {n:,} ({percent(n / survey.parameters)})" for x, n in survey.dtypes.items()]
        yield f"Precision: {', '.join(each)}."
    yield from _coverage_lines(survey)
    yield from _topology_lines(survey)
    yield from _zero_lines(survey)
    yield (
        f"To encode it, its values are cut into {survey.tokens:,} pieces (tokens) of up to"
        f" {survey.token_width}."
    )
    yield from (f"Tied: {x} is the same tensor as {owner}." for x, owner in survey.ties.items())
    yield from (f"Note: {x}." for x in survey.notes if not x.startswith(_NO_TOPOLOGY))


def _row(layer: LayerStats, survey: Survey, marks: dict[str, str]) -> tuple[str, ...]:
    values = max(layer.parameters, 1)
    return (
        _short(layer.name),
        layer.label,
        _tensor_shapes(layer),
        f"{layer.parameters:,}",
        f"{100 * layer.parameters / survey.total:.2f}",
        _dtypes(layer.tensors, marks),
        _number(layer.rms),
        _number(layer.bias_rms),
        f"{100 * layer.zeros / values:.1f}",
    )


def _tensor_shapes(layer: LayerStats) -> str:
    """Name a layer's tensors by the end of their keys; count those of one shape."""
    by_shape: dict[str, list[str]] = {}
    for x in layer.tensors:
        shape = "x".join(map(str, x.shape)) or "1"
        by_shape.setdefault(shape, []).append(_short(x.key.removeprefix(f"{layer.name}.")))
    if len(layer.tensors) == 1 and layer.tensors[0].key == layer.name:
        by_shape = {shape: [""] for shape in by_shape}  # the layer's name says it
    groups = [
        f"{f'{len(names)} of' if len(names) >= _ALIKE else ', '.join(names)} {shape}".strip()
        for shape, names in by_shape.items()
    ]
    return "; ".join([*groups, *(f"{_short(key)} as above" for key in layer.shared)])


def _short(name: str) -> str:
    """Return the end of a long name; JSON has it whole."""
    return name if len(name) <= _MAX_NAME else "…" + name[1 - _MAX_NAME :]


def _dtypes(tensors: Sequence[TensorStats], marks: dict[str, str]) -> str:
    """Return the types of values, and marks for those that were converted."""
    types = dict.fromkeys(x.dtype for x in tensors)
    converted = dict.fromkeys(marks[x.converted] for x in tensors if x.converted)
    return " ".join([*types, *converted])


def _coverage_lines(survey: Survey) -> Iterator[str]:
    """Yield what was read, converted, not read, and left alone."""
    missing = survey.total - survey.parameters
    if missing:
        yield (
            f"Coverage: only {percent(survey.coverage)} of the parameters could be read;"
            f" {missing:,} values could not."
        )
    else:
        yield "Coverage: 100 % of the parameters were read."
    for i, portion in enumerate(survey.converted, 1):
        yield f"Converted [{i}]: {_describe(portion, survey)}."
    yield from (f"Not read: {_describe(portion, survey)}." for portion in survey.missed)
    yield from (
        f"Skipped as no weights: {_describe(portion, survey)}." for portion in survey.skipped
    )


def _topology_lines(survey: Survey) -> Iterator[str]:
    text = {
        "known": "known: how layers are connected was read",
        "partly": f"known in part: {_few(survey.unconnected)} do not say what they read",
        "unknown": f"unknown: {_reason(survey)}",
    }[survey.topology]
    yield f"Topology {text}."
    if survey.groups:
        yield (
            f"Symmetry: {survey.channels:,} hidden channels in {_count(survey.groups, 'group')} can change"
            " places within their group without changing what the network computes."
        )


def _reason(survey: Survey) -> str:
    """Return why there is no topology."""
    reasons = (x.removeprefix(_NO_TOPOLOGY) for x in survey.notes if x.startswith(_NO_TOPOLOGY))
    return next(reasons, "the source does not say how layers are connected")


def _zero_lines(survey: Survey) -> Iterator[str]:
    channels = survey.structure
    share = percent(survey.zeros / max(survey.parameters, 1))
    yield f"Zeros: {survey.zeros:,} values ({share}) are exactly 0."
    if channels.outputs:
        sides = [_zero_channels("output", channels.zero_outputs, channels.outputs)]
        if channels.inputs:
            sides.append(_zero_channels("input", channels.zero_inputs, channels.inputs))
        yield f"Channels: {' and '.join(sides)} of weight matrices hold only zeros."
    if survey.nonfinite:
        yield (
            f"Warning: {survey.nonfinite:,} values are NaN or infinite; such a network cannot be"
            " encoded."
        )


def _zero_channels(kind: str, zero: int, count: int) -> str:
    return f"{zero:,} of {count:,} {kind} channels ({percent(zero / count)})"


def _describe(portion: Portion, survey: Survey) -> str:
    share = ""
    if portion.values >= 0:
        share = f", {portion.values:,} values, {percent(portion.values / survey.total)}"
    return f"{_count(len(portion.keys), 'tensor')}{share}: {portion.reason} ({_few(portion.keys)})"


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'s' * (number != 1)}"


def _few(keys: Sequence[str]) -> str:
    """Name a few tensors, and count the rest."""
    rest = f" and {len(keys) - 3:,} more" if len(keys) > 3 else ""
    return ", ".join(map(_short, keys[:3])) + rest


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}".rjust(7)
