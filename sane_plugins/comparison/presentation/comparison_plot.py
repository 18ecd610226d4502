"""A comparison as a picture: how far each layer moved, in the order of the first network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sane_plugins.atomic_files import write_whole
from sane_plugins.comparison.difference import LayerChange, LayerDifference, NetworkComparison
from sane_plugins.comparison.presentation.phrases import LABELS, percent
from sane_plugins.comparison.verdict import Verdict
from sane_plugins.errors import visible
from sane_plugins.runtime import without_warnings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS: Mapping[LayerChange, str] = {
    "equal": "#9aa5b1",
    "folded": "#cfd6dd",
    "rounded": "#8fc9a5",
    "scaled": "#17becf",
    "quantized": "#4c9f70",
    "pruned": "#ff7f0e",
    "resized": "#bcbd22",
    "low_rank": "#9467bd",
    "changed": "#4a78b5",
    "replaced": "#d62728",
    "only_a": "#8c564b",
    "only_b": "#e377c2",
}
_FLOOR = 1e-8  # where layers that did not move are drawn
_MAX_LABELS = 40
_MAX_LABEL_LENGTH = 24
_DPI = 150


def save_comparison_plot(comparison: NetworkComparison, verdict: Verdict, path: Path) -> Path:
    """Draw a comparison and save the figure in the format given by the suffix."""
    figure = draw_comparison(comparison, verdict)
    form = path.suffix.lower().removeprefix(".")

    def write(partial: Path) -> None:
        with without_warnings():  # of glyphs missing from the font, which are drawn as boxes
            figure.savefig(partial, format=form, dpi=_DPI)

    return write_whole(path, write)


def draw_comparison(comparison: NetworkComparison, verdict: Verdict) -> Figure:
    """Draw the figure, without a display or global matplotlib state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    names = [visible(Path(x.source).name, 60) for x in (comparison.a, comparison.b)]
    figure.suptitle(f"{names[0]} (A) and {names[1]} (B): {verdict.kind.value}", parse_math=False)
    distances, shares = figure.subplots(2, 1, gridspec_kw={"height_ratios": [6, 1]})
    _plot_distances(distances, comparison.layers)
    _draw_shares(shares, comparison)
    return figure


def _plot_distances(axes: Axes, layers: Sequence[LayerDifference]) -> None:
    """Plot each layer's relative distance on a log scale; those without one lie at the top or bottom."""
    for change, label in LABELS.items():
        at = [i for i, layer in enumerate(layers) if layer.change == change]
        if at:
            heights = [max(_distance(layers[i]), _FLOOR) for i in at]
            axes.scatter(at, heights, s=34, color=_COLORS[change], label=label, zorder=3)
    axes.set_yscale("log")
    axes.set_ylim(_FLOOR / 2, 5)
    axes.set_ylabel(f"|B - A| / |A|\n(not moved: at {_FLOOR:.0e})")
    axes.set_title("How far each layer moved, in network order", loc="left", fontsize=10)
    step = max(1, -(-len(layers) // _MAX_LABELS))
    names = [_shorten(layer.name_a or layer.name_b) for layer in layers[::step]]
    positions = list(range(len(layers)))[::step]
    axes.set_xticks(positions, names, rotation=90, fontsize=7, parse_math=False)
    axes.set_xlim(-0.7, len(layers) - 0.3)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _distance(layer: LayerDifference) -> float:
    """Return the distance of what stands for a layer; 1 for what is in one network only."""
    if layer.change in ("only_a", "only_b"):
        return 1.0
    told = layer.told
    moved = told is not None and layer.change not in ("equal", "folded")
    return (told.relation.distance or 0.0) if told is not None and moved else 0.0


def _draw_shares(axes: Axes, comparison: NetworkComparison) -> None:
    """Draw the parts of all values as one stacked bar."""
    left, texts = 0.0, []
    for change, label in LABELS.items():
        layers = [x for x in comparison.layers if x.change == change]
        if not layers:
            continue
        share = comparison.share(layers)
        axes.barh(0, 100 * share, left=left, color=_COLORS[change], height=0.7)
        left += 100 * share
        texts.append(f"{label.lower()} {percent(share)}")
    axes.set_yticks([])
    axes.set_xlim(0, 100)
    axes.set_xticks(range(0, 101, 20), [f"{x} %" for x in range(0, 101, 20)], fontsize=8)
    axes.set_title(f"Parts of all values: {', '.join(texts)}", loc="left", fontsize=10)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _shorten(name: str) -> str:
    """Return the end of a name, which says more than its start."""
    name = visible(name)
    return name if len(name) <= _MAX_LABEL_LENGTH else "…" + name[1 - _MAX_LABEL_LENGTH :]
