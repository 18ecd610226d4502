"""A comparison in words: the verdict as a sentence, and what else a reader should know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from sane_plugins.comparison.difference import (
    LayerChange,
    LayerDifference,
    NetworkComparison,
    TensorDifference,
)
from sane_plugins.comparison.verdict import GONE, Verdict, VerdictKind
from sane_plugins.weights import RUNNING

_MOST_NAMES = 3
_UNITS = {"tensor": "with one scale per tensor", "channel": "with a scale per channel"}


def verdict_line(comparison: NetworkComparison, verdict: Verdict) -> str:
    """Return the verdict as one line: its word, and what it says of these two networks."""
    return f"Verdict: {verdict.kind.value}. {_SENTENCES[verdict.kind](comparison, verdict)}"


def summary_lines(comparison: NetworkComparison, verdict: Verdict) -> Iterator[str]:
    """Yield lines on what is the same, what is not, the form, and what was not compared."""
    yield from _share_lines(comparison, verdict)
    if forms := [*_forms(comparison)]:
        yield f"Form: {'; '.join(forms)}."
    yield from _notes(comparison)


def _identical(_: NetworkComparison, __: Verdict) -> str:
    return "Every tensor has the same name, type and values in both."


def _same(_: NetworkComparison, __: Verdict) -> str:
    return "Both hold the same weights, in another form."


def _rounded(comparison: NetworkComparison, verdict: Verdict) -> str:
    one, other = _sides(verdict)
    found = _of(comparison, "rounded")
    types = ", ".join(dict.fromkeys(x.relation.precision for x in found))
    return f"{other} holds the weights of {one} rounded to {types}."


def _quantized(comparison: NetworkComparison, verdict: Verdict) -> str:
    one, other = _sides(verdict)
    found = _of(comparison, "quantized")
    main = max(found, key=lambda x: x.size).relation
    bits = sorted({x.relation.bits for x in found})
    width = f"{bits[0]}" if len(bits) == 1 else f"{bits[0]} to {bits[-1]}"
    unit = _UNITS.get(main.unit, f"with a scale per {main.unit} values")
    errors = [x.relation.error_steps for x in found]
    return (
        f"{other} holds the weights of {one} in {width} bits {unit}, {span(errors)} of a step away"
        " (rounding alone: 0.29)."
    )


def _pruned(comparison: NetworkComparison, verdict: Verdict) -> str:
    one, other = _sides(verdict)
    found = _of(comparison, "pruned")
    parts = []
    if found:
        zeros = sum(x.relation.pruned * x.size for x in found)
        share = percent(zeros / sum(x.size for x in found))
        parts.append(f"{share} of the values of {_count(found, 'tensor')} became zero")
    if resized := _of(comparison, "resized"):
        sizes = [min(x.a.size, x.b.size) for x in resized]
        share = percent(1 - sum(sizes) / sum(x.size for x in resized))
        parts.append(f"channels were removed ({share} of {_count(resized, 'tensor')})")
    moved = [x.relation.kept_distance for x in (*found, *resized)]
    rest = "the rest is the same" if max(moved) < 1e-6 else f"the rest moved by {span(moved)}"
    return f"{other} is {one} pruned: {' and '.join(parts)}; {rest}."


def _low_rank(comparison: NetworkComparison, _: Verdict) -> str:
    found = _of(comparison, "low_rank")
    ranks = sorted(x.relation.rank.rank or 0 for x in found if x.relation.rank)
    rank = f"rank {ranks[0]}" if ranks[0] == ranks[-1] else f"ranks {ranks[0]} to {ranks[-1]}"
    return (
        f"LoRA-like: {_count(found, 'matrix', 'matrices')} differ by a change of {rank}"
        f" and of {span(x.relation.distance for x in found)} in size."
    )


def _fine_tuned(comparison: NetworkComparison, _: Verdict) -> str:
    changed = _of(comparison, "changed")
    if all(x.relation.nonfinite and not x.relation.distance for x in changed):
        return "The same weights, but for values that are not finite."
    learned = [x for x in changed if x.a.role not in RUNNING]
    if not learned:
        return "Only running statistics of norms differ."
    main = [x for x in learned if len(x.a.shape) > 1] or learned
    bits = sorted({x.relation.bits for x in main} - {0})
    grid = f", on a grid of {bits[-1]} bits" if bits else ""
    far = span(x.relation.distance for x in main)
    return (
        f"One was trained on from the other, or both from one origin: {_count(main, 'tensor')} moved by {far}"
        f" of their size{grid}. Which was first cannot be seen in two files."
    )


def _scaled(comparison: NetworkComparison, _: Verdict) -> str:
    found = _of(comparison, "scaled")
    return (
        f"{_count(found, 'tensor')} differ by factors alone; whether other layers undo these was not"
        " checked."
    )


def _widened(_: NetworkComparison, verdict: Verdict) -> str:
    one, other = _sides(verdict)
    return f"{other} holds all channels of {one}, unchanged, and further ones."


def _partial(comparison: NetworkComparison, _: Verdict) -> str:
    same = [x for x in comparison.layers if x.change in ("equal", "folded")]
    return (
        f"{_count(same, 'layer')} ({percent(comparison.share(same))} of all values) are the same; the others"
        " were replaced, or are in one network only."
    )


def _unrelated(comparison: NetworkComparison, verdict: Verdict) -> str:
    if verdict.shared:
        return f"Only {percent(verdict.shared)} of the smaller network's weights are in the other."
    but = ", but for vectors" if _alike_in_vectors(comparison, verdict) else ""
    return f"No weights of one were found in the other{but}."


_SENTENCES = {
    VerdictKind.IDENTICAL: _identical,
    VerdictKind.SAME: _same,
    VerdictKind.ROUNDED: _rounded,
    VerdictKind.SCALED: _scaled,
    VerdictKind.QUANTIZED: _quantized,
    VerdictKind.PRUNED: _pruned,
    VerdictKind.LOW_RANK: _low_rank,
    VerdictKind.FINE_TUNED: _fine_tuned,
    VerdictKind.WIDENED: _widened,
    VerdictKind.PARTIAL: _partial,
    VerdictKind.UNRELATED: _unrelated,
}


def _share_lines(comparison: NetworkComparison, verdict: Verdict) -> Iterator[str]:
    """Yield a line for each thing that happened to layers: how many, how much of all values, and which."""
    alike = _alike_in_vectors(comparison, verdict)
    groups = [("Alike in vectors alone, which may be chance", alike)]
    for change, label in LABELS.items():
        groups.append(
            (label, [x for x in comparison.layers if x.change == change if x not in alike])
        )
    for label, layers in groups:
        if layers:
            names = [layer.name_a or layer.name_b for layer in layers]
            yield (
                f"{label}: {len(layers):,} of {_count(comparison.layers, 'layer')},"
                f" {percent(comparison.share(layers))} of all values ({_few(names)})."
            )


def _alike_in_vectors(comparison: NetworkComparison, verdict: Verdict) -> list[LayerDifference]:
    """Return the layers of strangers of which vectors alone, such as those of norms, are alike."""
    has_matrices = any(len(x.a.shape) > 1 for x in comparison.tensors)
    if verdict.kind is not VerdictKind.UNRELATED or not has_matrices:
        return []
    return [
        x
        for x in comparison.layers
        if x.change not in GONE and all(len(y.a.shape) < 2 or y.change in GONE for y in x.tensors)
    ]


def _forms(comparison: NetworkComparison) -> Iterator[str]:
    """Yield in what form the two differ, whatever happened to the weights."""
    a, b = comparison.a, comparison.b
    if a.container != b.container:
        yield f"{a.container} against {b.container}"
    if comparison.renamed:
        yield f"{comparison.renamed:,} of {_count(comparison.tensors, 'tensor')} have another name"
    if comparison.reordered:
        yield "tensors stand in another order"
    if a.dtypes != b.dtypes:
        yield f"stored as {', '.join(a.dtypes)} in A and {', '.join(b.dtypes)} in B"
    found = comparison.tensors
    for text, marked in (
        ("have their channels in another order", [x for x in found if x.permuted]),
        ("have rows and columns exchanged", [x for x in found if x.is_turned]),
    ):
        if marked:
            yield f"{_count(marked, 'tensor')} {text}"
    for side, holder, other in (("a", "A", "B"), ("b", "B", "A")):
        norms = [x for x in comparison.layers if x.folded_into and getattr(x, f"only_{side}")]
        if norms:
            yield f"{_count(norms, 'norm')} of {holder} are folded into the weights of {other}"


def _notes(comparison: NetworkComparison) -> Iterator[str]:
    for name, network in (("A", comparison.a), ("B", comparison.b)):
        if network.missed:
            yield f"Note: {network.missed:,} weights of {name} could not be read, and were not compared."
    broken = [x for x in comparison.tensors if x.relation.nonfinite]
    if broken:
        count = sum(x.relation.nonfinite for x in broken)
        names = _few([x.a.key for x in broken])
        values = "1 value is" if count == 1 else f"{count:,} values are"
        yield f"Note: {values} not finite in A or B, and not compared ({names})."
    if comparison.other_values:
        names = _few(comparison.other_values)
        yield f"Note: tensors that are no weights differ, or are in one only: {names}."


LABELS: Mapping[LayerChange, str] = {
    "equal": "Same",
    "folded": "Folded into other weights",
    "rounded": "Rounded",
    "scaled": "Scaled",
    "quantized": "Quantised",
    "pruned": "Pruned",
    "resized": "Other width",
    "low_rank": "Changed in few directions",
    "changed": "Changed",
    "replaced": "Replaced",
    "only_a": "Only in A",
    "only_b": "Only in B",
}


def _sides(verdict: Verdict) -> tuple[str, str]:
    """Return the names of what was there first, and of what was made of it."""
    return ("B", "A") if verdict.derived == "a" else ("A", "B")


def _of(comparison: NetworkComparison, change: LayerChange) -> list[TensorDifference]:
    return [x for x in comparison.tensors if x.change == change]


def percent(share: float) -> str:
    """Return a share of 1 as a percentage of two digits; 0 and 100 only if exact."""
    if share in (0.0, 1.0):
        return f"{100 * share:.0f} %"
    if share < 1e-4:
        return "under 0.01 %"
    if share > 0.999:
        return "over 99.9 %"
    return f"{100 * share:.{1 if share >= 0.1 else 2}f} %"


def span(values: Iterable[float | None]) -> str:
    """Return the range of some relative distances."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return "an unknown distance"
    low, high = f"{known[0]:.2g}", f"{known[-1]:.2g}"
    return low if low == high else f"{low} to {high}"


def _count(things: Sequence[object], name: str, plural: str = "") -> str:
    return f"{len(things):,} {name if len(things) == 1 else plural or name + 's'}"


def _few(names: Sequence[str]) -> str:
    """Return up to three names, and how many more there are."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more:,} more" if more > 0 else "")
