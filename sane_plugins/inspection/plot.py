"""One-page plot of a survey: norms by layer, tokens as an image, and fractions read and zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sane_plugins.atomic_files import require_outputs, write_whole
from sane_plugins.errors import SourceError, UsageError, visible
from sane_plugins.inspection.survey import LayerStats, Survey, percent
from sane_plugins.inspection.token_map import TokenMap, token_map
from sane_plugins.runtime import without_warnings
from sane_plugins.weights import WeightGraph

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg")
_COLORS = {
    "conv": "#1f77b4",
    "kernels": "#1f77b4",
    "linear": "#d62728",
    "matrix": "#d62728",
    "norm": "#2ca02c",
    "embedding": "#9467bd",
    "attention": "#ff7f0e",
    "recurrent": "#8c564b",
    "parameter": "#7f7f7f",
    "vector": "#bcbd22",
    "transposed conv": "#17becf",
}
_OTHER_COLOR = "#e377c2"
_GRAY, _LIGHT_GRAY = "#b8b8b8", "#dcdcdc"
_MAX_LAYER_LABELS = 40  # with more layers, only every n-th is labelled
_MAX_LABEL_LENGTH = 24
_MAX_STRIP_LABELS = 55  # that fit below the image
_MAX_SEPARATORS = 250  # more would hide the image
_DPI = 150
_DECADE = 10  # within one decade, minor ticks are labelled too
_COLOR_LIMIT = 3.0  # standard deviations at the ends of the colour scale


def require_plot(path: Path, force: bool) -> Path:
    """Return the path after checking, before any work, that a picture can be written to it."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            path,
            f"pictures have no suffix '{path.suffix}'",
            f"{', '.join(SUFFIXES)} are known",
            "choose one of these",
        )
    if find_spec("matplotlib") is None:
        raise SourceError(
            path,
            "the package matplotlib is not installed",
            "pictures need it",
            "run pip install 'sane-plugins[plot]'",
        )
    require_outputs([path], force=force)
    return path


def save_plot(graph: WeightGraph, survey: Survey, path: Path) -> Path:
    """Draw a network and save the figure in the format given by the suffix."""
    scale = {x.key: x.scale for x in survey.tensors}
    figure = draw(survey, token_map(graph, scale, survey.token_width))
    form = path.suffix.lower().removeprefix(".")

    def write(partial: Path) -> None:
        with without_warnings():  # of glyphs missing from the font, which are drawn as boxes
            figure.savefig(partial, format=form, dpi=_DPI)

    return write_whole(path, write)


def draw(survey: Survey, tokens: TokenMap) -> Figure:
    """Draw the figure, without a display or global matplotlib state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 10), layout="constrained")
    figure.suptitle(
        f"{_shorten(Path(survey.source).name, 80)}: {survey.parameters:,} parameters",
        parse_math=False,
    )
    norms, image, strip, bars = figure.subplots(
        4, 1, gridspec_kw={"height_ratios": [4, 4, 0.35, 1.5]}
    )
    _plot_norms(norms, survey.layers)
    _draw_tokens(figure, image, tokens)
    _draw_layer_strip(strip, tokens, {layer.name: _color(layer) for layer in survey.layers})
    _draw_fractions(bars, survey)
    return figure


def _plot_norms(axes: Axes, layers: Sequence[LayerStats]) -> None:
    """Plot the RMS of each layer's weights and biases on a log scale; zeros are placed at the bottom."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    shown = [layer for layer in layers if layer.tensors]
    nonzero = [x for layer in shown for x in (layer.rms, layer.bias_rms) if x]
    floor = min(nonzero, default=1.0) / 3
    labels = dict.fromkeys(layer.label for layer in shown)
    size = 36 if len(shown) <= _MAX_LAYER_LABELS else 14
    for label in labels:
        positions = [i for i, layer in enumerate(shown) if layer.label == label]
        _scatter(
            axes,
            positions,
            [shown[i].rms for i in positions],
            floor,
            size,
            color=_COLORS.get(label, _OTHER_COLOR),
            label=_shorten(label),
        )
    positions = list(range(len(shown)))
    _scatter(
        axes,
        positions,
        [x.bias_rms for x in shown],
        floor,
        size,
        facecolors="none",
        edgecolors="black",
        linewidths=0.8,
        label="bias",
    )
    axes.set_yscale("log")
    plain = FuncFormatter(lambda x, _: f"{x:g}")
    axes.yaxis.set_major_formatter(plain)
    is_narrow = max(nonzero, default=1.0) < _DECADE * min(nonzero, default=1.0)
    axes.yaxis.set_minor_formatter(plain if is_narrow else NullFormatter())
    zero = any(x == 0 for layer in shown for x in (layer.rms, layer.bias_rms))
    axes.set_title("Size of the weights of each layer, in network order", loc="left", fontsize=10)
    axes.set_ylabel("root mean square" + (f"\n(all zero: at {floor:.1g})" if zero else ""))
    step = max(1, -(-len(shown) // _MAX_LAYER_LABELS))
    names = [_shorten(layer.name) for layer in shown[::step]]
    axes.set_xticks(positions[::step], names, rotation=90, fontsize=7, parse_math=False)
    axes.set_xlim(-0.7, len(shown) - 0.3)
    axes.grid(alpha=0.25)
    legend = axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _scatter(
    axes: Axes,
    at: Sequence[int],
    values: Sequence[float | None],
    floor: float,
    size: float,
    **style: Any,
) -> None:
    pairs = [(i, max(x, floor)) for i, x in zip(at, values, strict=True) if x is not None]
    if pairs:
        axes.scatter([i for i, _ in pairs], [x for _, x in pairs], s=size, zorder=3, **style)


def _draw_tokens(figure: Figure, axes: Axes, tokens: TokenMap) -> None:
    """Draw the tokens as columns of an image, with padding in grey."""
    import matplotlib as mpl
    import numpy as np

    rows, width = tokens.values.shape
    values = np.ma.masked_array(tokens.values.numpy(), ~tokens.mask.numpy()).T
    colors = mpl.colormaps["RdBu_r"].with_extremes(bad=_GRAY)
    drawn = axes.imshow(
        values,
        aspect="auto",
        cmap=colors,
        vmin=-_COLOR_LIMIT,
        vmax=_COLOR_LIMIT,
        interpolation="nearest",
        extent=(0, rows, width, 0),
    )
    for last in _select_spaced([last for _, _, last in tokens.spans[:-1]], rows / _MAX_SEPARATORS):
        axes.axvline(last, color="black", linewidth=0.4, alpha=0.6)
    shown = "all" if rows == tokens.total else f"{rows:,} evenly chosen"
    axes.set_title(
        f"Weights, cut into columns of up to {width} values ({shown} of {tokens.total:,});"
        " lines part layers, grey is empty",
        loc="left",
        fontsize=10,
    )
    axes.set_ylabel("place in the column")
    axes.set_xticks([])
    bar = figure.colorbar(drawn, ax=axes, pad=0.01, extend="both")
    bar.set_label("deviations from\nthe tensor's mean")


def _draw_layer_strip(axes: Axes, tokens: TokenMap, colors: dict[str, str]) -> None:
    """Colour columns by layer, and label layers where space permits, widest first."""
    rows = len(tokens.values)
    line = 0.3 if len(tokens.spans) < _MAX_SEPARATORS // 2 else 0.0
    axes.broken_barh(
        [(first, last - first) for _, first, last in tokens.spans],
        (0, 1),
        facecolors=[colors[name] for name, _, _ in tokens.spans],
        edgecolors="white",
        linewidth=line,
    )
    by_width = sorted(tokens.spans, key=lambda span: span[1] - span[2])
    name_by_centre = {(first + last) / 2: name for name, first, last in reversed(by_width)}
    centres = [(first + last) / 2 for _, first, last in by_width]
    positions = sorted(_select_spaced(centres, rows / _MAX_STRIP_LABELS))
    axes.set_xticks(
        positions,
        [_shorten(name_by_centre[x]) for x in positions],
        rotation=90,
        fontsize=7,
        parse_math=False,
    )
    axes.set_xlim(0, rows)
    axes.set_yticks([])


def _select_spaced(positions: Sequence[float], min_distance: float) -> list[float]:
    """Select positions greedily so that all are at least `min_distance` apart."""
    selected: list[float] = []
    for position in positions:
        if all(abs(position - other) >= min_distance for other in selected):
            selected.append(position)
    return selected


def _draw_fractions(axes: Axes, survey: Survey) -> None:
    """Draw fractions read and zero, of parameters, values and channels, as stacked bars."""
    bars = list(_fraction_bars(survey))[::-1]
    for row, (_, parts) in enumerate(bars):
        total, left = max(sum(count for _, count, _ in parts), 1), 0.0
        for _, count, color in parts:
            axes.barh(row, 100 * count / total, left=left, color=color, height=0.7)
            left += 100 * count / total
        legend = ", ".join(f"{name} {percent(count / total)}" for name, count, _ in parts if count)
        axes.text(101, row, legend, va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=8)
    axes.set_xlim(0, 160)
    axes.set_xticks(range(0, 101, 20), [f"{x} %" for x in range(0, 101, 20)], fontsize=8)
    axes.set_title("What was read, and what is zero", loc="left", fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_bounds(0, 100)


def _fraction_bars(survey: Survey) -> Iterator[tuple[str, list[tuple[str, int, str]]]]:
    """Yield each bar's name and its parts: name, count, colour."""
    converted = sum(x.values for x in survey.converted)
    missed = survey.total - survey.parameters
    as_stored = survey.parameters - converted
    yield (
        "parameters",
        [
            ("read as stored", as_stored, "#4c9f70"),
            ("read and converted", converted, "#8fc9a5"),
            ("not read", missed, "#d62728"),
        ],
    )
    yield (
        "values",
        [
            ("in use", survey.parameters - survey.zeros, "#4a78b5"),
            ("exactly zero", survey.zeros, _LIGHT_GRAY),
        ],
    )
    channels = survey.structure
    for name, count, zero in (
        ("output channels", channels.outputs, channels.zero_outputs),
        ("input channels", channels.inputs, channels.zero_inputs),
    ):
        if count:
            yield name, [("in use", count - zero, "#4a78b5"), ("all zero", zero, _LIGHT_GRAY)]


def _color(layer: LayerStats) -> str:
    return _COLORS.get(layer.label, _OTHER_COLOR)


def _shorten(name: str, max_length: int = _MAX_LABEL_LENGTH) -> str:
    """Return the end of a name, which is more specific, at a component boundary if possible; `visible`."""
    name = visible(name)
    if len(name) <= max_length:
        return name
    end = name[1 - max_length :]
    return "…" + (end.partition(".")[2] or end)
