"""One word for a pair of networks: what the larger part of the changes is.

The method: docs/explanation/sane.md, section 21.6.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from sane_plugins.comparison.difference import LayerChange, NetworkComparison, TensorDifference
from sane_plugins.comparison.relation import Side
from sane_plugins.weights import RUNNING

_LEAST_SHARED = 0.05  # of the smaller network's values; below it two networks are strangers
GONE: frozenset[LayerChange] = frozenset(("replaced", "only_a", "only_b"))


class VerdictKind(str, Enum):
    """What two networks are to each other, from the same to strangers."""

    IDENTICAL = "identical"
    SAME = "same"
    ROUNDED = "rounded"
    SCALED = "scaled"
    QUANTIZED = "quantized"
    PRUNED = "pruned"
    LOW_RANK = "low-rank"
    FINE_TUNED = "fine-tuned"
    WIDENED = "widened"
    PARTIAL = "partial"
    UNRELATED = "unrelated"


_KINDS: Mapping[LayerChange, VerdictKind] = {
    "rounded": VerdictKind.ROUNDED,
    "scaled": VerdictKind.SCALED,
    "quantized": VerdictKind.QUANTIZED,
    "pruned": VerdictKind.PRUNED,
    "low_rank": VerdictKind.LOW_RANK,
    "changed": VerdictKind.FINE_TUNED,
}
SAME_WEIGHTS = (VerdictKind.IDENTICAL, VerdictKind.SAME)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What two networks are to each other; `derived` is the one made of the other, where that can be seen.

    `shares` has the part of all values by what became of them. `shared` is the part of the smaller network's
    values that are in the other one, changed or not.
    """

    kind: VerdictKind
    derived: Side
    shares: Mapping[LayerChange, float]
    shared: float


def judge(comparison: NetworkComparison) -> Verdict:
    """Return the verdict on two networks."""
    sizes: dict[LayerChange, int] = {}
    for layer in comparison.layers:
        sizes[layer.change] = sizes.get(layer.change, 0) + layer.size
    related = [x for x in comparison.tensors if x.change not in GONE]
    shared = _shared(comparison, related)
    changed = [x for x in related if x.change != "equal"]
    kind, derived = _kind(comparison, related, changed, shared)
    return Verdict(
        kind=kind,
        derived=derived,
        shares={x: size / max(comparison.size, 1) for x, size in sizes.items()},
        shared=shared,
    )


def _shared(comparison: NetworkComparison, related: Iterable[TensorDifference]) -> float:
    """Return the part of the smaller network's matrices in the other; vectors may agree by chance."""
    has_matrices = any(len(x.a.shape) > 1 for x in comparison.tensors)
    least = 2 if has_matrices else 0

    def size(params: Iterable[tuple[int, tuple[int, ...]]]) -> int:
        return sum(count for count, shape in params if len(shape) >= least)

    both = comparison.tensors
    alone_a = [p for layer in comparison.layers for p in layer.only_a]
    alone_b = [p for layer in comparison.layers for p in layer.only_b]
    all_a = size((p.size, p.shape) for p in (*(x.a for x in both), *alone_a))
    all_b = size((p.size, p.shape) for p in (*(x.b for x in both), *alone_b))
    found = size((min(x.a.size, x.b.size), x.a.shape) for x in related)
    return min(found / max(min(all_a, all_b), 1), 1.0)


def _kind(
    comparison: NetworkComparison,
    related: list[TensorDifference],
    changed: list[TensorDifference],
    shared: float,
) -> tuple[VerdictKind, Side]:
    if shared < _LEAST_SHARED:
        return VerdictKind.UNRELATED, ""
    if changed:
        return _kind_of_changes(changed)
    if any(layer.change in GONE for layer in comparison.layers):
        return VerdictKind.PARTIAL, ""
    return (VerdictKind.IDENTICAL if _is_identical(comparison, related) else VerdictKind.SAME), ""


def _kind_of_changes(changed: list[TensorDifference]) -> tuple[VerdictKind, Side]:
    """Return what most of the changed values are; learned ones, where any of these changed."""
    learned = [x for x in changed if x.a.role not in RUNNING] or changed
    sizes: dict[tuple[LayerChange, Side], int] = {}
    for x in learned:
        key = (x.change, x.relation.derived)
        sizes[key] = sizes.get(key, 0) + x.size
    (change, derived), _ = max(sizes.items(), key=lambda found: found[1])
    if change != "resized":
        return _KINDS[change], derived
    wider_a, wider_b = (
        sum(max(getattr(x, side).size - min(x.a.size, x.b.size), 0) for x in learned)
        for side in ("a", "b")
    )
    # Vectors are paired with less certainty: those of a wider layer may stand with another's.
    matrices = [x for x in learned if len(x.a.shape) > 1] or learned
    is_exact = all(x.relation.change in ("equal", "rounded") for x in matrices)
    if wider_b > wider_a and is_exact:
        return VerdictKind.WIDENED, "b"
    return VerdictKind.PRUNED, "b" if wider_a >= wider_b else "a"


def _is_identical(comparison: NetworkComparison, related: Iterable[TensorDifference]) -> bool:
    return (
        comparison.renamed == comparison.retyped == 0
        and not comparison.other_values
        and not comparison.a.missed + comparison.b.missed
        and all(layer.change == "equal" for layer in comparison.layers)
        and not any(layer.only_a or layer.only_b for layer in comparison.layers)
        and all(
            x.relation.is_exact and not (x.permuted or x.is_turned or x.relation.scaling)
            for x in related
        )
    )
