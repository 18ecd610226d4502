"""Constants as nodes see them: copied, cast, dequantised, transposed or reshaped on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnx import NodeProto

from sane_onnx.attributes import integers
from sane_onnx.proto import STANDARD
from sane_plugins.weights import Param

_SAME = ("Identity", "Cast", "CastLike", "DequantizeLinear")


@dataclass(frozen=True)
class View:
    """A weight as a node reads it: its shape there, and which stored axis each axis is (None: none)."""

    param: Param
    shape: tuple[int, ...]
    axes: tuple[int | None, ...]

    @classmethod
    def of(cls, param: Param) -> View:
        """Return the view that changes nothing."""
        return cls(param, param.shape, tuple(range(len(param.shape))))

    @property
    def is_plain(self) -> bool:
        """Tell whether the weight is read as it is stored."""
        return self.shape == self.param.shape and self.axes == tuple(range(len(self.axes)))

    @property
    def is_flipped(self) -> bool:
        """Tell whether a matrix is read transposed, and nothing else."""
        return self.axes == (1, 0) and len(self.param.shape) == 2


def views(
    nodes: Iterable[NodeProto], params: Mapping[str, Param], numbers: Mapping[str, Sequence[int]]
) -> dict[str, View]:
    """Return the weights by every value that stands for one of them alone."""
    found = {key: View.of(param) for key, param in params.items()}
    for node in nodes:
        if node.domain not in STANDARD or not node.input or len(node.output) != 1:
            continue
        source = found.get(node.input[0])
        seen = _through(node, source, numbers) if source is not None else None
        if seen is not None:
            found[node.output[0]] = seen
    return found


def _through(node: NodeProto, view: View, numbers: Mapping[str, Sequence[int]]) -> View | None:
    if node.op_type in _SAME:
        return view
    if node.op_type == "Transpose":
        order = integers(node, "perm") or list(range(len(view.shape)))[::-1]
        if sorted(order) != list(range(len(view.shape))):
            return None
        turned = tuple(view.shape[i] for i in order)
        return replace(view, shape=turned, axes=tuple(view.axes[i] for i in order))
    shape = _reshaped(node, view.shape, numbers)
    return None if shape is None else replace(view, shape=shape, axes=_kept(view, shape))


def _reshaped(
    node: NodeProto, shape: tuple[int, ...], numbers: Mapping[str, Sequence[int]]
) -> tuple[int, ...] | None:
    """Return the shape that a node gives its input, where the file says it."""
    second = numbers.get(node.input[1]) if len(node.input) > 1 else None
    axes = integers(node, "axes") or second
    if node.op_type == "Unsqueeze" and axes:
        rank = len(shape) + len(axes)
        added, rest = {a % rank for a in axes}, iter(shape)
        if len(added) < len(axes):
            return None
        return tuple(1 if i in added else next(rest) for i in range(rank))
    if node.op_type == "Squeeze":
        dropped = {a % len(shape) for a in axes} if axes and shape else None
        return tuple(
            n for i, n in enumerate(shape) if (n != 1 if dropped is None else i not in dropped)
        )
    return _resized(shape, second) if node.op_type == "Reshape" and second is not None else None


def _resized(shape: tuple[int, ...], wanted: Sequence[int]) -> tuple[int, ...] | None:
    size = 1
    for n in shape:
        size *= n
    sizes = [shape[i] if n == 0 and i < len(shape) else n for i, n in enumerate(wanted)]
    known = 1
    for n in sizes:
        known *= n if n > 0 else 1
    if sizes.count(-1) == 1 and known and size % known == 0:
        sizes[sizes.index(-1)] = size // known
        known = size
    return tuple(sizes) if known == size and min(sizes, default=1) > 0 else None


def _kept(view: View, shape: tuple[int, ...]) -> tuple[int | None, ...]:
    """Return the stored axis of each axis of a new shape; None where an axis was cut or merged."""
    starts, product = {}, 1
    for size, axis in zip(view.shape, view.axes, strict=True):
        if size > 1:
            starts[product, size] = axis
        product *= size
    found, product = [], 1
    for size in shape:
        found.append(starts.get((product, size)))
        product *= size
    return tuple(found)
