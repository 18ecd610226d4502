"""The layers of a comparison as a table: what is the same takes one row, long tables are drawn together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sane_plugins.comparison.difference import LayerDifference, NetworkComparison, TensorDifference
from sane_plugins.comparison.presentation.phrases import percent, span
from sane_plugins.errors import visible
from sane_plugins.weights import RUNNING

MOST_ROWS = 30
_COLUMNS = ("layer", "its name in B", "values", "what", "distance", "cosine", "rank of change")
_MOST_NAME = 32
# What takes one row however many layers it happened to, and what is told of nothing but its size.
_QUIET = ("replaced", "only_a", "only_b", "quantized", "rounded", "folded", "equal")
_SILENT = ("equal", "folded", "only_a", "only_b")


class LayerTable(NamedTuple):
    """A table: title, column names, and rows of cells."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def table_of_layers(comparison: NetworkComparison, all_layers: bool = False) -> LayerTable:
    """Return a table of what became of the layers, a row for each with `all_layers`."""
    title = "distance: |B - A| / |A|, once channels stand in one order"
    if all_layers:
        return LayerTable(title, _COLUMNS, [_row([layer]) for layer in comparison.layers])
    loud = [x for x in comparison.layers if x.change not in _QUIET]
    quiet: dict[str, list[LayerDifference]] = {}
    for layer in sorted(comparison.layers, key=_loudness):
        if layer.change in _QUIET:
            quiet.setdefault(_what(layer), []).append(layer)
    rows = [*_drawn_together(loud), *quiet.values()]
    return LayerTable(title, _COLUMNS, [_row(layers) for layers in rows])


def _loudness(layer: LayerDifference) -> int:
    return _QUIET.index(layer.change) if layer.change in _QUIET else 0


def _drawn_together(layers: Sequence[LayerDifference]) -> Iterator[list[LayerDifference]]:
    """Yield layers one by one, or so many neighbours of one kind at once that the table stays short."""
    size = -(-len(layers) // MOST_ROWS)
    run: list[LayerDifference] = []
    for layer in layers:
        if run and (len(run) == size or _what(layer) != _what(run[0])):
            yield run
            run = []
        run.append(layer)
    if run:
        yield run


def _row(layers: Sequence[LayerDifference]) -> tuple[str, ...]:
    """Return the row of one layer, or of several to which the same happened."""
    told = [x for layer in layers if (x := layer.told) is not None]
    told = [x for x in told if len(x.a.shape) > 1] or told  # norms' figures are of another kind
    far = [x.relation.distance for x in told]
    cosines = [x.relation.cosine for x in told]
    is_same = all(layer.change in _SILENT for layer in layers)
    names_a = [layer.name_a for layer in layers if layer.name_a]
    names_b = [layer.name_b for layer in layers if layer.name_b]
    return (
        _names(names_a),
        _names(names_b) if names_a != names_b else "",
        f"{sum(layer.size for layer in layers):,}",
        _what(layers[0]) + _extent(told),
        "" if is_same or not any(x is not None for x in far) else span(far),
        "" if is_same or not any(x is not None for x in cosines) else _cosines(cosines),
        "" if is_same else _ranks(told),
    )


def _names(names: Sequence[str]) -> str:
    if not names:
        return ""
    if len(names) == 1:
        return _short(names[0])
    return f"{_short(names[0])} … {_short(names[-1])} ({len(names)} layers)"


def _short(name: str) -> str:
    """Return a name, or its end, which says more than its start."""
    name = visible(name)
    return name if len(name) <= _MOST_NAME else "…" + name[1 - _MOST_NAME :]


def _what(layer: LayerDifference) -> str:
    """Return what became of a layer, in words."""
    told = layer.told
    if layer.folded_into or told is None:
        return {"folded": "folded into the weights before"}.get(
            layer.change, f"only in {layer.change[-1].upper()}"
        )
    relation = told.relation
    text = {
        "equal": "same",
        "rounded": f"rounded to {relation.precision}",
        "scaled": f"factors by {relation.scaling}",
        "quantized": f"{relation.bits} bits",
        "pruned": "pruned",
        "resized": "other width",
        "low_rank": "low rank",
        "changed": "changed",
        "replaced": "replaced",
    }[layer.change]
    is_statistic = layer.change == "changed" and told.a.role in RUNNING
    return f"{text}, statistics alone" if is_statistic else text


def _extent(told: Sequence[TensorDifference]) -> str:
    """Return how much of the tensors was pruned, or what remains of channels."""
    if told and told[0].change == "pruned":
        values = sum(x.relation.pruned * x.size for x in told) / sum(x.size for x in told)
        bits = f", {told[0].relation.bits} bits" if told[0].relation.bits else ""
        return f" {percent(values)}{bits}"
    if len(told) == 1 and told[0].channels:
        shapes = ("x".join(map(str, param.shape)) for param in (told[0].a, told[0].b))
        return " " + " to ".join(shapes)
    return ""


def _cosines(values: Sequence[float | None]) -> str:
    known = sorted(value for value in values if value is not None)
    low, high = f"{known[0]:.4f}", f"{known[-1]:.4f}"
    return low if low == high else f"{low} to {high}"


def _ranks(told: Sequence[TensorDifference]) -> str:
    """Return how many directions hold 90 % of the change, or all of it where these are few."""
    found = [x.relation.rank for x in told if x.relation.rank and x.change != "replaced"]
    if not found:
        return ""
    values = sorted((x.rank if x.is_low else x.main_rank) or x.full for x in found)
    low, high = values[0], values[-1]
    full = max(x.full for x in found)
    return f"{low if low == high else f'{low} to {high}'} of {full}"
