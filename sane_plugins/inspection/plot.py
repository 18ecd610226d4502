"""Plot of a survey on one page: norms by layer, the tokens as an image, shares read and zero."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sane_plugins.atomic_files import require_free, write_whole
from sane_plugins.errors import SourceError, UsageError
from sane_plugins.inspection.survey import LayerStats, Survey, percent
from sane_plugins.inspection.token_map import TokenMap, token_map
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
_OTHER = "#e377c2"
_GRAY, _PALE = "#b8b8b8", "#dcdcdc"
_NAMED = 40  # more layers than these are named in steps
_LONGEST = 24
_NAMES = 55  # most names that fit below the image
_LINES = 250  # most lines that leave anything of the image to see
_DPI = 150
_DECADE = 10  # within one decade, numbers between powers of ten are written too
_REACH = 3.0  # deviations at the ends of the colour scale


def require_plot(path: Path, force: bool) -> Path:
    """Return a path that a picture can be written to; raise `SaneError` where none can, before any work."""
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
    return require_free(path, force)


def save_plot(graph: WeightGraph, survey: Survey, path: Path) -> Path:
    """Draw a network and write the picture in the form that the suffix asks for."""
    scale = {x.key: x.scale for x in survey.tensors}
    figure = draw(survey, token_map(graph, scale, survey.token_width))
    form = path.suffix.lower().removeprefix(".")

    def write(partial: Path) -> None:
        with warnings.catch_warnings():
            # A name in a script that the font lacks is drawn as boxes; that needs no warning.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(partial, format=form, dpi=_DPI)

    return write_whole(path, write)


def draw(survey: Survey, tokens: TokenMap) -> Figure:
    """Return the figure; needs no display and touches no global state of matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 10), layout="constrained")
    figure.suptitle(
        f"{_short(Path(survey.source).name, 80)}: {survey.parameters:,} parameters",
        parse_math=False,
    )
    norms, image, strip, bars = figure.subplots(
        4, 1, gridspec_kw={"height_ratios": [4, 4, 0.35, 1.5]}
    )
    _norms(norms, survey.layers)
    _image(figure, image, tokens)
    _strip(strip, tokens, {layer.name: _color(layer) for layer in survey.layers})
    _bars(bars, survey)
    return figure


def _norms(axes: Axes, layers: Sequence[LayerStats]) -> None:
    """Draw the norm of each layer's weights and biases, on a log scale; zero lies on the floor."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    shown = [layer for layer in layers if layer.tensors]
    found = [x for layer in shown for x in (layer.rms, layer.bias_rms) if x]
    floor = min(found, default=1.0) / 3
    labels = dict.fromkeys(layer.label for layer in shown)
    size = 36 if len(shown) <= _NAMED else 14
    for label in labels:
        at = [i for i, layer in enumerate(shown) if layer.label == label]
        _dots(
            axes,
            at,
            [shown[i].rms for i in at],
            floor,
            size,
            color=_COLORS.get(label, _OTHER),
            label=label,
        )
    at = list(range(len(shown)))
    _dots(
        axes,
        at,
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
    is_narrow = max(found, default=1.0) < _DECADE * min(found, default=1.0)
    axes.yaxis.set_minor_formatter(plain if is_narrow else NullFormatter())
    zero = any(x == 0 for layer in shown for x in (layer.rms, layer.bias_rms))
    axes.set_title("Size of the weights of each layer, in network order", loc="left", fontsize=10)
    axes.set_ylabel("root mean square" + (f"\n(all zero: at {floor:.1g})" if zero else ""))
    step = max(1, -(-len(shown) // _NAMED))
    names = [_short(layer.name) for layer in shown[::step]]
    axes.set_xticks(at[::step], names, rotation=90, fontsize=7, parse_math=False)
    axes.set_xlim(-0.7, len(shown) - 0.3)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _dots(
    axes: Axes,
    at: Sequence[int],
    values: Sequence[float | None],
    floor: float,
    size: float,
    **look: Any,
) -> None:
    pairs = [(i, max(x, floor)) for i, x in zip(at, values, strict=True) if x is not None]
    if pairs:
        axes.scatter([i for i, _ in pairs], [x for _, x in pairs], s=size, zorder=3, **look)


def _image(figure: Figure, axes: Axes, tokens: TokenMap) -> None:
    """Draw the tokens as columns; what is no value of the network is grey."""
    import matplotlib as mpl
    import numpy as np

    rows, width = tokens.values.shape
    values = np.ma.masked_array(tokens.values.numpy(), ~tokens.mask.numpy()).T
    colors = mpl.colormaps["RdBu_r"].with_extremes(bad=_GRAY)
    drawn = axes.imshow(
        values,
        aspect="auto",
        cmap=colors,
        vmin=-_REACH,
        vmax=_REACH,
        interpolation="nearest",
        extent=(0, rows, width, 0),
    )
    for last in _apart([last for _, _, last in tokens.spans[:-1]], rows / _LINES):
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


def _strip(axes: Axes, tokens: TokenMap, colors: dict[str, str]) -> None:
    """Draw which layer each column belongs to, and name those that have room, wide ones first."""
    rows = len(tokens.values)
    line = 0.3 if len(tokens.spans) < _LINES // 2 else 0.0
    for name, first, last in tokens.spans:
        axes.broken_barh(
            [(first, last - first)],
            (0, 1),
            facecolors=colors[name],
            edgecolors="white",
            linewidth=line,
        )
    by_width = sorted(tokens.spans, key=lambda span: span[1] - span[2])
    named = {(first + last) / 2: name for name, first, last in reversed(by_width)}
    centres = [(first + last) / 2 for _, first, last in by_width]
    at = sorted(_apart(centres, rows / _NAMES))
    axes.set_xticks(at, [_short(named[x]) for x in at], rotation=90, fontsize=7, parse_math=False)
    axes.set_xlim(0, rows)
    axes.set_yticks([])


def _apart(places: Sequence[float], least: float) -> list[float]:
    """Return the places that lie at least so far from all that come before them."""
    kept: list[float] = []
    for place in places:
        if all(abs(place - other) >= least for other in kept):
            kept.append(place)
    return kept


def _bars(axes: Axes, survey: Survey) -> None:
    """Draw what was read and what is zero, as shares of parameters, weights and channels."""
    bars = list(_shares(survey))[::-1]
    for at, (_, parts) in enumerate(bars):
        total, left = max(sum(count for _, count, _ in parts), 1), 0.0
        for _, count, color in parts:
            axes.barh(at, 100 * count / total, left=left, color=color, height=0.7)
            left += 100 * count / total
        told = ", ".join(f"{name} {percent(count / total)}" for name, count, _ in parts if count)
        axes.text(101, at, told, va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=8)
    axes.set_xlim(0, 160)
    axes.set_xticks(range(0, 101, 20), [f"{x} %" for x in range(0, 101, 20)], fontsize=8)
    axes.set_title("What was read, and what is zero", loc="left", fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_bounds(0, 100)


def _shares(survey: Survey) -> Iterator[tuple[str, list[tuple[str, int, str]]]]:
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
            ("exactly zero", survey.zeros, _PALE),
        ],
    )
    found = survey.structure
    for name, count, zero in (
        ("output channels", found.outputs, found.zero_outputs),
        ("input channels", found.inputs, found.zero_inputs),
    ):
        if count:
            yield name, [("in use", count - zero, "#4a78b5"), ("all zero", zero, _PALE)]


def _color(layer: LayerStats) -> str:
    return _COLORS.get(layer.label, _OTHER)


def _short(name: str, longest: int = _LONGEST) -> str:
    """Return a name's end, which tells more than its beginning; whole parts of it where they fit."""
    if len(name) <= longest:
        return name
    end = name[1 - longest :]
    return "…" + (end.partition(".")[2] or end)
