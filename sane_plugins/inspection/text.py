"""A survey as text: a table of layers, and summary lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sane_plugins.inspection.survey import LayerStats, Portion, Survey, percent
from sane_plugins.inspection.tensor_stats import TensorStats
from sane_plugins.weights import MAX_VALUE

_NO_TOPOLOGY = "no topology: "  # prefix of a note that gives the reason
_INFERRED = "topology inferred: "  # prefix of a note that says what was inferred
MAX_TABLE_LAYERS = 40  # longer tables are abbreviated
_LAYERS_PER_END = 15  # layers shown at either end of a long table
_MAX_NAME = 32  # characters of a name
_MIN_COUNTED_TENSORS = 3  # with this many tensors of one shape, names are omitted
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
    """A table: title, column names, and rows of cells."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def layer_table(survey: Survey, limit: int | None = MAX_TABLE_LAYERS) -> Table:
    """Return a table with a row per layer, abbreviated to both ends if longer than `limit`."""
    marks = {portion.reason: f"[{i}]" for i, portion in enumerate(survey.converted, 1)}
    rows = [_row(layer, survey, marks) for layer in survey.layers]
    if limit is not None and len(rows) > limit:
        omitted = survey.layers[_LAYERS_PER_END:-_LAYERS_PER_END]
        size = sum(layer.parameters for layer in omitted)
        share = f"{100 * size / survey.total:.2f}"
        ellipsis_row = (
            f"... {len(omitted)} more",
            "",
            "see --all-layers",
            f"{size:,}",
            share,
            *[""] * 4,
        )
        rows = [*rows[:_LAYERS_PER_END], ellipsis_row, *rows[-_LAYERS_PER_END:]]
    return Table(f"{survey.source} ({survey.container})", _COLUMNS, rows)


def summary_lines(survey: Survey) -> Iterator[str]:
    """Yield summary lines on coverage, topology, zeros, tokens, ties and notes."""
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
    yield from (f"Note: {x}." for x in survey.notes if not x.startswith((_NO_TOPOLOGY, _INFERRED)))


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
    """List a layer's tensors by shape, with abbreviated names or a count."""
    by_shape: dict[str, list[str]] = {}
    for x in layer.tensors:
        shape = "x".join(map(str, x.shape)) or "1"
        by_shape.setdefault(shape, []).append(_short(x.key.removeprefix(f"{layer.name}.")))
    if len(layer.tensors) == 1 and layer.tensors[0].key == layer.name:
        by_shape = {shape: [""] for shape in by_shape}  # the layer's name says it
    groups = [
        f"{f'{len(names)} of' if len(names) >= _MIN_COUNTED_TENSORS else ', '.join(names)} {shape}".strip()
        for shape, names in by_shape.items()
    ]
    return "; ".join([*groups, *(f"{_short(key)} as above" for key in layer.shared)])


def _short(name: str) -> str:
    """Truncate a long name to its end; JSON output has the full name."""
    return name if len(name) <= _MAX_NAME else "…" + name[1 - _MAX_NAME :]


def _dtypes(tensors: Sequence[TensorStats], marks: dict[str, str]) -> str:
    """Return the dtypes, and footnote marks of converted tensors."""
    types = dict.fromkeys(x.dtype for x in tensors)
    converted = dict.fromkeys(marks[x.converted] for x in tensors if x.converted)
    return " ".join([*types, *converted])


def _coverage_lines(survey: Survey) -> Iterator[str]:
    """Yield lines on tensors that were read, converted, missed and skipped."""
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
    for note in survey.notes:
        if note.startswith(_INFERRED):
            text = note.removeprefix("topology ")
    yield f"Topology {text}."
    if survey.groups:
        yield (
            f"Symmetry: {survey.channels:,} hidden channels in {_count(survey.groups, 'group')} can change"
            " places within their group without changing what the network computes."
        )


def _reason(survey: Survey) -> str:
    """Return the reason why there is no topology."""
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
            f"Warning: {survey.nonfinite:,} values are NaN, infinite or above {MAX_VALUE:.1g};"
            " properties cannot be predicted from such a network."
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
    """List up to three tensors, and count the rest."""
    rest = f" and {len(keys) - 3:,} more" if len(keys) > 3 else ""
    return ", ".join(map(_short, keys[:3])) + rest


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}".rjust(7)
