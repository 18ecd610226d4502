"""What `inspect` tells in words: a table of layers, and a line for each thing to know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from sane_plugins.cli.console import print_table
from sane_plugins.inspection import LayerStats, Portion, Survey, TensorStats, percent

_NO_TOPOLOGY = "no topology: "  # how a note begins that gives the reason
_MANY = 40
_ENDS = 15  # layers shown at either end of a long table
_LONGEST = 32
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


def print_report(found: Survey, tokens: int, width: int, all_layers: bool) -> None:
    """Print the table of layers, the ends of a long one unless all are asked for, and what is to be said."""
    signs = {x.reason: f"[{i}]" for i, x in enumerate(found.converted, 1)}
    rows = [_row(layer, found, signs) for layer in found.layers]
    if len(rows) > _MANY and not all_layers:
        first, last = rows[:_ENDS], rows[-_ENDS:]
        between = found.layers[_ENDS:-_ENDS]
        size = sum(layer.parameters for layer in between)
        share = f"{100 * size / found.total:.2f}"
        left = (f"... {len(between)} more", "", "see --all-layers", f"{size:,}", share, *[""] * 4)
        rows = [*first, left, *last]
    print_table(f"{found.source} ({found.container})", _COLUMNS, rows)
    for line in _lines(found, tokens, width):
        click.echo(line)


def _row(layer: LayerStats, found: Survey, signs: dict[str, str]) -> tuple[str, ...]:
    values = max(layer.parameters, 1)
    return (
        _short(layer.name),
        layer.label,
        _shapes(layer),
        f"{layer.parameters:,}",
        f"{100 * layer.parameters / found.total:.2f}",
        _stored(layer.tensors, signs),
        _number(layer.rms),
        _number(layer.bias_rms),
        f"{100 * layer.zeros / values:.1f}",
    )


def _shapes(layer: LayerStats) -> str:
    """Name a layer's tensors by the end of their keys; count those of one shape."""
    by_shape: dict[str, list[str]] = {}
    for x in layer.tensors:
        shape = "x".join(map(str, x.shape)) or "1"
        by_shape.setdefault(shape, []).append(_short(x.key.removeprefix(f"{layer.name}.")))
    if len(layer.tensors) == 1 and layer.tensors[0].key == layer.name:
        by_shape = {shape: [""] for shape in by_shape}  # the layer's name says it
    told = [
        f"{f'{len(names)} of' if len(names) >= _ALIKE else ', '.join(names)} {shape}".strip()
        for shape, names in by_shape.items()
    ]
    return "; ".join([*told, *(f"{_short(key)} as above" for key in layer.shared)])


def _short(name: str) -> str:
    """Return the end of a long name; JSON has it whole."""
    return name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :]


def _stored(tensors: Sequence[TensorStats], signs: dict[str, str]) -> str:
    """Return the types of values, and signs for those that were converted."""
    types = dict.fromkeys(x.dtype for x in tensors)
    marks = dict.fromkeys(signs[x.converted] for x in tensors if x.converted)
    return " ".join([*types, *marks])


def _lines(found: Survey, tokens: int, width: int) -> Iterator[str]:
    types = ", ".join(found.dtypes)
    yield (
        f"{found.parameters:,} parameters ({types}) in {_count(len(found.tensors), 'tensor')} of"
        f" {_count(len(found.layers), 'layer')}."
    )
    if len(found.dtypes) > 1:
        each = [f"{x} {n:,} ({percent(n / found.parameters)})" for x, n in found.dtypes.items()]
        yield f"Precision: {', '.join(each)}."
    yield from _read(found)
    yield from _connected(found)
    yield from _zeros(found)
    yield f"To encode it, its values are cut into {tokens:,} pieces (tokens) of up to {width}."
    yield from (f"Tied: {x} is the same tensor as {owner}." for x, owner in found.ties.items())
    yield from (f"Note: {x}." for x in found.notes if not x.startswith(_NO_TOPOLOGY))


def _read(found: Survey) -> Iterator[str]:
    """Tell what was read, converted, not read, and left alone."""
    missing = found.total - found.parameters
    if missing:
        yield (
            f"Coverage: only {percent(found.coverage)} of the parameters could be read;"
            f" {missing:,} values could not."
        )
    else:
        yield "Coverage: 100 % of the parameters were read."
    for i, part in enumerate(found.converted, 1):
        yield f"Converted [{i}]: {_portion(part, found)}."
    yield from (f"Not read: {_portion(part, found)}." for part in found.missed)
    yield from (f"Skipped as no weights: {_portion(part, found)}." for part in found.skipped)


def _connected(found: Survey) -> Iterator[str]:
    told = {
        "known": "known: how layers are connected was read",
        "partly": f"known in part: {_listed(found.unconnected)} do not say what they read",
        "unknown": f"unknown: {_reason(found)}",
    }[found.topology]
    yield f"Topology {told}."
    if found.groups:
        yield (
            f"Symmetry: {found.channels:,} hidden channels in {_count(found.groups, 'group')} can change"
            " places within their group without changing what the network computes."
        )


def _reason(found: Survey) -> str:
    """Return why there is no topology."""
    reasons = (x.removeprefix(_NO_TOPOLOGY) for x in found.notes if x.startswith(_NO_TOPOLOGY))
    return next(reasons, "the source does not say how layers are connected")


def _zeros(found: Survey) -> Iterator[str]:
    channels = found.structure
    share = percent(found.zeros / max(found.parameters, 1))
    yield f"Zeros: {found.zeros:,} values ({share}) are exactly 0."
    if channels.outputs:
        told = [_dead("output", channels.zero_outputs, channels.outputs)]
        if channels.inputs:
            told.append(_dead("input", channels.zero_inputs, channels.inputs))
        yield f"Channels: {' and '.join(told)} of weight matrices hold only zeros."
    if found.unusable:
        yield (
            f"Warning: {found.unusable:,} values are NaN or infinite; such a network cannot be"
            " encoded."
        )


def _dead(kind: str, zero: int, count: int) -> str:
    return f"{zero:,} of {count:,} {kind} channels ({percent(zero / count)})"


def _portion(part: Portion, found: Survey) -> str:
    share = ""
    if part.values >= 0:
        share = f", {part.values:,} values, {percent(part.values / found.total)}"
    return f"{_count(len(part.keys), 'tensor')}{share}: {part.reason} ({_listed(part.keys)})"


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'s' * (number != 1)}"


def _listed(keys: Sequence[str]) -> str:
    """Name a few tensors, and count the rest."""
    rest = f" and {len(keys) - 3:,} more" if len(keys) > 3 else ""
    return ", ".join(map(_short, keys[:3])) + rest


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}".rjust(7)
