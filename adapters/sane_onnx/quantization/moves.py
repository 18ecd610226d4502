"""Steps that move numbers and change none: Transpose, Reshape, Slice, Split, Concat, Gather, ...

A step is followed backwards: numbers that lie over its output are brought to where they lie over its input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from onnx import NodeProto

from sane_onnx.operators import attributes
from sane_plugins.weights import MAX_AXES

Shape = tuple[int, ...]
Integers = Callable[[str], Sequence[int] | None]
_LONGEST = 2**63 - 1


@dataclass(frozen=True)
class Move:
    """A step from a tensor of shape `before` to one of shape `after`.

    `axes` is for each axis after it the same axis before it, or None. `back` brings numbers of shape
    `after` to shape `before`; NaN stands for places that the step leaves out.
    """

    before: Shape
    after: Shape
    axes: tuple[int | None, ...]
    back: Callable[[torch.Tensor], torch.Tensor]


def reshape(before: Shape, after: Shape) -> Move:
    """Return the step that keeps the order of all numbers."""
    axes = stored_axes(before, range(len(before)), after)
    return Move(before, after, axes, lambda x: x.reshape(before))


def permute(before: Shape, order: Sequence[int]) -> Move:
    """Return the step that reorders axes."""
    inverse = [list(order).index(i) for i in range(len(before))]
    after = tuple(before[i] for i in order)
    return Move(before, after, tuple(order), lambda x: x.permute(inverse))


def pick(before: Shape, axis: int, indices: Sequence[int]) -> Move:
    """Return the step that takes these indices of an axis."""
    after = (*before[:axis], len(indices), *before[axis + 1 :])

    def back(numbers: torch.Tensor) -> torch.Tensor:
        index = torch.tensor(list(indices), dtype=torch.int64)
        return torch.full(before, torch.nan).index_copy(axis, index, numbers.float())

    return Move(before, after, _all_but(axis, len(before)), back)


def append(before: Shape, axis: int, start: int, length: int) -> Move:
    """Return the step that puts a tensor between others, `start` places from the front."""
    after = (*before[:axis], length, *before[axis + 1 :])
    axes = _all_but(axis, len(before))
    return Move(before, after, axes, lambda x: x.narrow(axis, start, before[axis]))


def look_up(before: Shape, axis: int, rank: int) -> Move:
    """Return the step that takes unknown indices of an axis, `rank` axes of them.

    Numbers must be the same for all of them, so these axes count as of size 1.
    """
    after = (*before[:axis], *(1,) * rank, *before[axis + 1 :])
    one = (*before[:axis], 1, *before[axis + 1 :])
    axes = (*range(axis), *(None,) * rank, *range(axis + 1, len(before)))
    return Move(before, after, axes, lambda x: x.reshape(one).expand(before))


def moves_of(node: NodeProto, shape: Shape, integers: Integers) -> list[tuple[Move, ...]] | None:
    """Return for each output of a node the steps from its first input of this shape.

    None where the node has unknown operands, or is none of these steps.
    """
    rule = _RULES.get(node.op_type)
    moves = rule(node, shape, integers) if rule is not None else None
    if moves is None or any(len(step.after) > MAX_AXES for steps in moves for step in steps):
        return None
    return moves


def stored_axes(
    before: Shape, axes_before: Sequence[int | None], shape: Shape
) -> tuple[int | None, ...]:
    """Return the stored axis of each axis of a new shape; None where an axis was split or merged."""
    starts, product = {}, 1
    for size, axis in zip(before, axes_before, strict=True):
        if size > 1:
            starts[product, size] = axis
        product *= size
    axes, product = [], 1
    for size in shape:
        axes.append(starts.get((product, size)))
        product *= size
    return tuple(axes)


def _all_but(axis: int, rank: int) -> tuple[int | None, ...]:
    return tuple(None if i == axis else i for i in range(rank))


def _operand(node: NodeProto, index: int, name: str, integers: Integers) -> list[int] | None:
    """Return integers that are an attribute in early operator sets, and an input in later ones."""
    stated = attributes.integers(node, name)
    if stated is not None or index >= len(node.input) or not node.input[index]:
        return stated
    values = integers(node.input[index])
    return None if values is None else list(values)


def _has_operand(node: NodeProto, index: int, name: str) -> bool:
    return attributes.has(node, name) or bool(node.input[index : index + 1] and node.input[index])


_Steps = list[tuple[Move, ...]]


def _identity(_: NodeProto, __: Shape, ___: Integers) -> _Steps:
    return [()]


def _transpose(node: NodeProto, shape: Shape, _: Integers) -> _Steps | None:
    order = attributes.integers(node, "perm") or list(range(len(shape)))[::-1]
    return [(permute(shape, order),)] if sorted(order) == list(range(len(shape))) else None


def _reshape(node: NodeProto, shape: Shape, integers: Integers) -> _Steps | None:
    target = _operand(node, 1, "shape", integers)
    if target is None or 0 in shape or (attributes.integer(node, "allowzero", 0) and 0 in target):
        return None
    sizes = [shape[i] if n == 0 and i < len(shape) else n for i, n in enumerate(target)]
    known = prod(n for n in sizes if n != -1)
    if sizes.count(-1) == 1 and known > 0 and prod(shape) % known == 0:
        sizes[sizes.index(-1)] = prod(shape) // known
    is_whole = min(sizes, default=1) > 0 and prod(sizes) == prod(shape)
    return [(reshape(shape, tuple(sizes)),)] if is_whole else None


def _flatten(node: NodeProto, shape: Shape, _: Integers) -> _Steps | None:
    axis = attributes.integer(node, "axis", 1)
    if not -len(shape) <= axis <= len(shape):
        return None
    axis += len(shape) if axis < 0 else 0
    return [(reshape(shape, (prod(shape[:axis]), prod(shape[axis:]))),)]


def _squeeze(node: NodeProto, shape: Shape, integers: Integers) -> _Steps | None:
    axes = _operand(node, 1, "axes", integers)
    if axes is None and _has_operand(node, 1, "axes"):
        return None
    dropped = {i for i, n in enumerate(shape) if n == 1}
    if axes is not None:
        stated = {a % max(len(shape), 1) for a in axes}
        if not stated <= dropped:
            return None
        dropped = stated
    return [(reshape(shape, tuple(n for i, n in enumerate(shape) if i not in dropped)),)]


def _unsqueeze(node: NodeProto, shape: Shape, integers: Integers) -> _Steps | None:
    axes = _operand(node, 1, "axes", integers)
    if axes is None or len(axes) > MAX_AXES:
        return None
    rank = len(shape) + len(axes)
    added, rest = {a % rank for a in axes}, iter(shape)
    if len(added) < len(axes):
        return None
    return [(reshape(shape, tuple(1 if i in added else next(rest) for i in range(rank))),)]


def _slice(node: NodeProto, shape: Shape, integers: Integers) -> _Steps | None:
    starts, ends = (_operand(node, i, x, integers) for i, x in ((1, "starts"), (2, "ends")))
    axes, steps = (_operand(node, i, x, integers) for i, x in ((3, "axes"), (4, "steps")))
    is_unknown = any(
        x is None and _has_operand(node, i, n)
        for i, x, n in ((3, axes, "axes"), (4, steps, "steps"))
    )
    if starts is None or ends is None or is_unknown:
        return None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if len({len(starts), len(ends), len(axes), len(steps)}) > 1 or 0 in steps:
        return None
    moves: list[Move] = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if not -len(shape) <= axis < len(shape):
            return None
        axis %= len(shape)
        stop = None if step < 0 and end <= -_LONGEST else end  # the front itself
        moves.append(pick(shape, axis, range(shape[axis])[slice(start, stop, step)]))
        shape = moves[-1].after
    return [tuple(moves)]


def _split(node: NodeProto, shape: Shape, integers: Integers) -> _Steps | None:
    axis, count = attributes.integer(node, "axis", 0), len(node.output)
    if not -len(shape) <= axis < len(shape):
        return None
    axis %= len(shape)
    sizes = _operand(node, 1, "split", integers)
    if sizes is None:
        if _has_operand(node, 1, "split"):
            return None
        chunk = -(-shape[axis] // count)
        sizes = [min(chunk, max(shape[axis] - i * chunk, 0)) for i in range(count)]
    if len(sizes) != count or min(sizes) < 0 or sum(sizes) != shape[axis]:
        return None
    ends = [sum(sizes[: i + 1]) for i in range(count)]
    ranges = [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    return [(pick(shape, axis, x),) for x in ranges]


def _gather(node: NodeProto, shape: Shape, integers: Integers) -> _Steps | None:
    axis = attributes.integer(node, "axis", 0)
    indices = integers(node.input[1]) if len(node.input) == 2 else None
    if indices is None or not -len(shape) <= axis < len(shape):
        return None
    axis %= len(shape)
    size = shape[axis]
    rows = [i % size for i in indices if -size <= i < size] if size else []
    # Of a row taken twice, numbers along the axis could differ from one time to the other.
    is_plain = len(rows) == len(indices) == len(set(rows))
    return [(pick(shape, axis, rows),)] if is_plain else None


_RULES: dict[str, Callable[[NodeProto, Shape, Integers], _Steps | None]] = {
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": _identity,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
