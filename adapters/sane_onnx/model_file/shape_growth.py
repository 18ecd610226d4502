"""Bounds on what shape inference would work out: ranks and lists of sizes can double with every node.

They are upper bounds from operators and ranks alone, in one pass over the nodes in topological order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from onnx import NodeProto

_ARITHMETIC = ("Add", "Div", "Max", "Min", "Mod", "Mul", "Sub", "Where")
_RANK_FROM_LIST = (
    "Col2Im",
    "ConstantOfShape",
    "Expand",
    "RandomNormal",
    "RandomUniform",
    "Reshape",
)
# Of these the output has an axis more, or a sequence or an optional value holds the input's type.
_DEEPER = (
    "ConcatFromSequence",
    "OneHot",
    "OneHotEncoder",
    "Optional",
    "SequenceConstruct",
    "SequenceInsert",
    "SequenceMap",
    "SplitToSequence",
    "StringSplit",
)
_UNBOUNDED = 2**63
_MIN_RANK = 6  # of operators that make a tensor of a rank of their own


@dataclass
class Growth:
    """Bounds on the axes of all values together, and on the length of all lists of sizes together."""

    axes: int = 0
    listed: int = 0


def bound_growth(
    nodes: Iterable[NodeProto],
    ranks: Mapping[str, int],
    lengths: Mapping[str, int],
    numbers: Mapping[str, int],
    most: int,
) -> Growth:
    """Return bounds for nodes, given bounds of inputs and constants; it ends where one exceeds `most`.

    `lengths` are those of lists of integers, `numbers` the values of constant lists of one integer.
    """
    bounds = _Bounds(dict(ranks), dict(lengths), numbers)
    growth = Growth(axes=sum(ranks.values()), listed=sum(lengths.values()))
    for node in nodes:
        rank, length = bounds.rank_after(node), bounds.length_after(node)
        growth.axes += rank * len(node.output)
        growth.listed += length * len(node.output)
        if growth.axes > most or growth.listed > most:
            break
        bounds.ranks.update(dict.fromkeys(node.output, rank))
        bounds.lengths.update(dict.fromkeys(node.output, length))
    return growth


@dataclass
class _Bounds:
    """Bounds by value: of ranks, and of lengths of lists of sizes (0: none); `numbers` as above."""

    ranks: dict[str, int]
    lengths: dict[str, int]
    numbers: Mapping[str, int]

    def rank_after(self, node: NodeProto) -> int:
        """Return a bound on the rank of a node's outputs."""
        operator = node.op_type
        ranks = [self.ranks.get(name, 0) for name in node.input] or [0]
        if operator in ("Gather", "GatherND"):
            return max(sum(ranks[:2]) - 1, 0)
        if operator == "Unsqueeze":
            return ranks[0] + self._listed(node)
        if operator == "Squeeze" or _drops_axes(node):
            return max(ranks[0] - self._listed(node), 0)
        if operator == "Einsum":
            return sum(len(a.s) for a in node.attribute)
        if operator in _RANK_FROM_LIST:
            return max(self._listed(node) + 2, ranks[0] if operator == "Expand" else 0)
        widest = max(ranks)
        return widest + 1 if operator in _DEEPER else max(widest, _MIN_RANK)

    def _listed(self, node: NodeProto) -> int:
        """Return how many axes or sizes a node's attributes and operands list."""
        operands = node.input if node.op_type == "ConstantOfShape" else node.input[1:]
        stated = sum(len(a.ints) for a in node.attribute)
        return stated + sum(self.lengths.get(name, 0) for name in operands)

    def length_after(self, node: NodeProto) -> int:
        """Return a bound on how many sizes a node's output lists; 0 where it lists none."""
        operator = node.op_type
        if operator == "Shape":
            return self.ranks.get(node.input[0], 0) if node.input else 0
        lengths = [self.lengths.get(name, 0) for name in node.input if name]
        if not any(lengths):
            return 0
        if operator == "Concat":
            return sum(lengths) if all(lengths) else 0
        if operator in _ARITHMETIC:
            return max(lengths) if all(lengths) else 0
        first = self.lengths.get(node.input[0], 0)
        if operator == "Gather":
            return max(lengths[-1], 1) if first else 0
        if operator == "Squeeze":
            return min(first, 1)
        return min(first, self._sliced(node)) if operator == "Slice" else first

    def _sliced(self, node: NodeProto) -> int:
        """Return how long a list is at most that a Slice with constant bounds takes out of any."""
        stated = [self.numbers.get(name) for name in node.input[1:3]] or [
            a.ints[0]
            for name in ("starts", "ends")
            for a in node.attribute
            if a.name == name and a.ints
        ]
        bounds = [bound for bound in stated if bound is not None]
        if len(bounds) < 2 or (bounds[0] < 0) != (bounds[1] < 0):
            return _UNBOUNDED
        return max(bounds[1] - bounds[0], 0)


def _drops_axes(node: NodeProto) -> bool:
    return node.op_type.startswith("Reduce") and any(
        a.name == "keepdims" and not a.i for a in node.attribute
    )
