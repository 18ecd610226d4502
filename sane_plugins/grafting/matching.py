"""Match the units of two networks: blocks in order, and within two blocks their units in order.

The method: docs/explanation/sane.md, section 15.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from sane_plugins.display import ShortRepr
from sane_plugins.grafting.units import NetworkUnits, Unit

_STRIDE_FACTOR = 0.7  # where the strides of two units differ
_MOST_COMPOSED = 3  # expansion, depthwise convolution and projection
_RESIDUAL_FACTOR = 0.5  # where one of two blocks adds what it has read, and the other does not
_LINEAR_FACTOR = 0.5  # where one is linear and the other a convolution
_DEPTHWISE_FACTOR = 0.1  # where one is depthwise and the other is not


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Pair(ShortRepr):
    """A target's unit and what it gets its weights from: a unit of the source, or several that are composed.

    Several are neighbours, in their order: a depthwise convolution, and before or behind it convolutions with
    one tap; together they are a dense one, but for the activations between them. `similarity` is from 0 to 1.
    """

    target: Unit
    sources: tuple[Unit, ...]
    similarity: float

    @property
    def source(self) -> Unit:
        """Return the source's unit whose output is that of the target's."""
        return self.sources[-1]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Matching(ShortRepr):
    """The pairs by the target unit's name, the matched blocks (source, target), and how alike all is.

    Target units without a partner have no pair. `similarity` is 1 for networks of equal shapes.
    """

    pairs: Mapping[str, Pair]
    blocks: tuple[tuple[int, int], ...]
    similarity: float


Align = Callable[[Sequence[Unit], Sequence[Unit]], list[Pair]]


def match(source: NetworkUnits, target: NetworkUnits) -> Matching:
    """Return the source's unit for each unit of the target that has one.

    Blocks are matched in order; a source's block may serve several blocks of the target one after the
    other, and each target block is served. Classifiers are each other's partners.
    """
    likeness = _Likeness(source, target)
    blocks = [
        [_align_blocks(mine, theirs, likeness) for theirs in target.blocks]
        for mine in source.blocks
    ]
    values = [
        [
            sum(pair.similarity for pair in blocks[i][j])
            / len(theirs)
            * _residual_factor(mine, theirs)
            for j, theirs in enumerate(target.blocks)
        ]
        for i, mine in enumerate(source.blocks)
    ]
    score, assigned = _serve(values, len(target.blocks))
    pairs = {
        pair.target.name: pair
        for block, served_by in enumerate(assigned)
        for pair in blocks[served_by][block]
    }
    if source.classifier and target.classifier:
        pairs[target.classifier.name] = Pair(
            target=target.classifier,
            sources=(source.classifier,),
            similarity=likeness.of((source.classifier,), target.classifier),
        )
    return Matching(
        pairs=pairs,
        blocks=tuple((served_by, block) for block, served_by in enumerate(assigned)),
        similarity=score / max(1, len(target.blocks)),
    )


def match_places(source: NetworkUnits, target: NetworkUnits) -> Matching:
    """Return the source's unit of the same kind at the same relative place for each unit of the target."""
    likeness = _Likeness(source, target)
    pairs: dict[str, Pair] = {}
    for unit in target.units:
        peers = [x for x in target.units if _form(x) == _form(unit)]
        candidates = [x for x in source.units if _form(x) == _form(unit)]
        if candidates:
            place = peers.index(unit) * (len(candidates) - 1) / max(1, len(peers) - 1)
            found = candidates[round(place)]
            similarity = likeness.of((found,), unit)
            pairs[unit.name] = Pair(target=unit, sources=(found,), similarity=similarity)
    total = sum(pair.similarity for pair in pairs.values())
    return Matching(pairs=pairs, blocks=(), similarity=total / max(1, len(target.units)))


def _form(unit: Unit) -> tuple[object, ...]:
    place = "body" if unit.place == "shortcut" else unit.place
    return unit.kind, place, max(unit.kernel, default=1) > 1


class _Likeness:
    """How alike units of two networks are, from 0 to 1."""

    def __init__(self, source: NetworkUnits, target: NetworkUnits) -> None:
        self._source, self._target = source, target
        counts = round(source.halvings), round(target.halvings)
        # Networks that halve their images equally often are compared by that, others by the share.
        self._scale = (
            target.halvings / source.halvings if counts[0] != counts[1] and counts[0] else 1.0
        )

    def of(self, sources: tuple[Unit, ...], target: Unit) -> float:
        """Return the root of the product over all dimensions of smaller / larger; less for another depth.

        And for another stride or kind. The root: a layer that is half as wide reads half and writes half.
        """
        kinds = {unit.kind for unit in (*sources, target)}
        if len(sources) == 1 and len(kinds) > 1 and not _may_serve(sources[0], target):
            return 0.0
        ours = _dimensions(sources, self._source, kinds == {"depthwise"})
        theirs = _dimensions((target,), self._target, kinds == {"depthwise"})
        value = 1.0
        for one, other in zip(ours, theirs, strict=True):
            value *= min(one, other) / max(one, other)
        if len(sources) == 1 and len(kinds) > 1:
            value *= _DEPTHWISE_FACTOR if "depthwise" in kinds else _LINEAR_FACTOR
        if max(x.stride for x in sources) != target.stride:
            value *= _STRIDE_FACTOR
        depth = abs(sources[-1].halvings * self._scale - target.halvings)
        return sqrt(value) * float(2.0**-depth)


def _may_serve(source: Unit, target: Unit) -> bool:
    """Return whether a unit may serve one of another kind: single channels only where there are taps."""
    is_dense = "depthwise" not in (source.kind, target.kind)
    return is_dense or (target.kind == "conv" and max(target.kernel) > 1)


def _dimensions(
    units: tuple[Unit, ...], network: NetworkUnits, are_depthwise: bool
) -> tuple[int, int, int]:
    """Return the channels written and read, and the longest side of a kernel; a depthwise layer reads one."""
    side = max((max(unit.kernel) for unit in units if unit.kernel), default=1)
    read = 1 if are_depthwise else _channels(units[0].inputs, network)
    return _channels(units[-1].outputs, network), read, side


def _channels(groups: tuple[int, ...], network: NetworkUnits) -> int:
    return sum(network.groups[group].size for group in groups)


def _residual_factor(source: Sequence[Unit], target: Sequence[Unit]) -> float:
    is_residual = [any(unit.ends_identity_block for unit in block) for block in (source, target)]
    return 1.0 if is_residual[0] == is_residual[1] else _RESIDUAL_FACTOR


def _align_blocks(
    source: Sequence[Unit], target: Sequence[Unit], likeness: _Likeness
) -> list[Pair]:
    """Return the pairs of two blocks: bodies, shortcuts and gates each in their order.

    A depthwise unit of the target that is left over gets the filters of the most alike depthwise one.
    """
    pairs = [
        pair
        for place in ("body", "shortcut", "gate")
        for pair in _align(
            [unit for unit in source if unit.place == place],
            [unit for unit in target if unit.place == place],
            likeness,
        )
    ]
    served = {pair.target.name for pair in pairs}
    filters = [unit for unit in source if unit.kind == "depthwise"]
    for unit in target:
        if unit.name not in served and unit.kind == "depthwise" and filters:
            found = max(filters, key=lambda x: likeness.of((x,), unit))
            similarity = likeness.of((found,), unit)
            pairs.append(Pair(target=unit, sources=(found,), similarity=similarity))
    return pairs


def _align(source: Sequence[Unit], target: Sequence[Unit], likeness: _Likeness) -> list[Pair]:
    """Return as many pairs in order as there can be, with the largest sum of their similarities.

    A unit without a partner breaks the chain, so it is worse than an unlike partner. Neighbours that together
    are a dense convolution may serve one unit.
    """
    nothing: tuple[float, tuple[Pair, ...]] = (0.0, ())
    best = [[nothing] * (len(target) + 1)]
    for i in range(1, len(source) + 1):
        row = [nothing]
        for j in range(1, len(target) + 1):
            options = [best[i - 1][j], row[j - 1]]
            for taken in range(1, min(i, _MOST_COMPOSED) + 1):
                sources = tuple(source[i - taken : i])
                if taken > 1 and not _compose(sources, target[j - 1]):
                    continue
                similarity = likeness.of(sources, target[j - 1])
                if similarity > 0:
                    pair = Pair(target=target[j - 1], sources=sources, similarity=similarity)
                    value, pairs = best[i - taken][j - 1]
                    options.append((value + 1 + similarity, (*pairs, pair)))
            row.append(max(options, key=lambda option: option[0]))
        best.append(row)
    return list(best[-1][-1][1])


def _compose(sources: Sequence[Unit], target: Unit) -> bool:
    """Return whether one depthwise unit and units with one tap together make a convolution with taps."""
    if target.kind != "conv" or target.groups > 1 or max(target.kernel) == 1:
        return False
    depthwise = [unit for unit in sources if unit.kind == "depthwise"]
    dense = [unit for unit in sources if unit.kind == "conv" and unit.groups == 1]
    return (
        len(depthwise) == 1
        and len(dense) == len(sources) - 1
        and all(max(unit.kernel) == unit.stride == 1 for unit in dense)
    )


def _serve(values: Sequence[Sequence[float]], targets: int) -> tuple[float, list[int]]:
    """Return the best sum and the source block of each target block, in order.

    values[i][j]: how alike source block i and target block j are. A run of n target blocks that one
    source block serves counts the sum of its values / sqrt(n); source blocks may be skipped.
    """
    if not targets or not values:
        return 0.0, []
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    best += [(float("-inf"), ())] * targets
    for i, row in enumerate(values):
        new = list(best)
        for start in range(targets):
            value, assigned = best[start]
            total = 0.0
            for stop in range(start + 1, targets + 1):
                total += row[stop - 1]
                score = value + total / sqrt(stop - start)
                if score > new[stop][0]:
                    new[stop] = (score, (*assigned, *[i] * (stop - start)))
        best = new
    score, assigned = best[-1]
    return max(score, 0.0), list(assigned)
