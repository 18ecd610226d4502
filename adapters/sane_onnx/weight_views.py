"""Views of weights: as an operator reads them after Cast, DequantizeLinear, Transpose, Reshape, ..."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnx import NodeProto

from sane_onnx.operators import attributes
from sane_onnx.proto import STANDARD
from sane_plugins.weights import MAX_AXES, Param

_SHAPE_PRESERVING = ("Identity", "Cast", "CastLike", "DequantizeLinear")


@dataclass(frozen=True)
class View:
    """A weight as an operator reads it: its shape there, and the stored axis of each axis.

    None stands for an axis that was split or merged, or has size 1.
    """

    param: Param
    shape: tuple[int, ...]
    axes: tuple[int | None, ...]

    @classmethod
    def of(cls, param: Param) -> View:
        """Return the weight as it is stored."""
        return cls(param, param.shape, tuple(range(len(param.shape))))

    @property
    def is_identity(self) -> bool:
        """Return whether the weight is read as stored."""
        return self.shape == self.param.shape and self.axes == tuple(range(len(self.axes)))

    @property
    def is_transposed(self) -> bool:
        """Return whether a matrix is read transposed and otherwise unchanged."""
        return self.axes == (1, 0) and len(self.param.shape) == 2


def trace_views(
    nodes: Iterable[NodeProto], params: Mapping[str, Param], integers: Mapping[str, Sequence[int]]
) -> dict[str, View]:
    """Return views by value, for every value that is a view of one weight."""
    views = {key: View.of(param) for key, param in params.items()}
    for node in nodes:
        if node.domain not in STANDARD or not node.input or len(node.output) != 1:
            continue
        source = views.get(node.input[0])
        view = _view_after(node, source, integers) if source is not None else None
        if view is not None and len(view.shape) <= MAX_AXES:
            views[node.output[0]] = view
    return views


def _view_after(node: NodeProto, view: View, integers: Mapping[str, Sequence[int]]) -> View | None:
    if node.op_type in _SHAPE_PRESERVING:
        return view
    if node.op_type == "Transpose":
        order = attributes.integers(node, "perm") or list(range(len(view.shape)))[::-1]
        if sorted(order) != list(range(len(view.shape))):
            return None
        permuted = tuple(view.shape[i] for i in order)
        return replace(view, shape=permuted, axes=tuple(view.axes[i] for i in order))
    shape = _shape_after(node, view.shape, integers)
    return None if shape is None else replace(view, shape=shape, axes=_stored_axes(view, shape))


def _shape_after(
    node: NodeProto, shape: tuple[int, ...], integers: Mapping[str, Sequence[int]]
) -> tuple[int, ...] | None:
    """Return the shape of a node's output; None where it is not a reshape, or its target is computed."""
    second = integers.get(node.input[1]) if len(node.input) > 1 else None
    axes = attributes.integers(node, "axes") or second
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
    return (
        _resolve_shape(shape, second) if node.op_type == "Reshape" and second is not None else None
    )


def _resolve_shape(shape: tuple[int, ...], target: Sequence[int]) -> tuple[int, ...] | None:
    size = 1
    for n in shape:
        size *= n
    sizes = [shape[i] if n == 0 and i < len(shape) else n for i, n in enumerate(target)]
    product = 1
    for n in sizes:
        product *= n if n > 0 else 1
    if sizes.count(-1) == 1 and product and size % product == 0:
        sizes[sizes.index(-1)] = size // product
        product = size
    return tuple(sizes) if product == size and min(sizes, default=1) > 0 else None


def _stored_axes(view: View, shape: tuple[int, ...]) -> tuple[int | None, ...]:
    """Return the stored axis of each axis of a new shape; None where an axis was split or merged."""
    starts, product = {}, 1
    for size, axis in zip(view.shape, view.axes, strict=True):
        if size > 1:
            starts[product, size] = axis
        product *= size
    axes, product = [], 1
    for size in shape:
        axes.append(starts.get((product, size)))
        product *= size
    return tuple(axes)
