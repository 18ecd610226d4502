"""Views of weights: as an operator reads them after Cast, DequantizeLinear, Transpose, Reshape, ..."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnx import NodeProto

from sane_onnx.model_file.proto import STANDARD
from sane_onnx.quantization.moves import moves_of
from sane_plugins.weights import MAX_AXES, Param

_SHAPE_PRESERVING = ("Identity", "Cast", "CastLike", "DequantizeLinear")
_RESHAPES = ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


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
    nodes: Iterable[NodeProto],
    params: Mapping[str, Param],
    integers: Mapping[str, Sequence[int]],
    dequantized: Mapping[str, str],
) -> dict[str, View]:
    """Return views by value, for every value that is a view of one weight.

    `dequantized` are values that arithmetic makes of quantised ones, with the value that they come from.
    """
    views = {key: View.of(param) for key, param in params.items()}
    for node in nodes:
        if len(node.output) == 1 and (value := node.output[0]) in dequantized:
            if dequantized[value] in views:
                views[value] = views[dequantized[value]]
            continue
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
    if node.op_type not in _RESHAPES:
        return None
    moves = moves_of(node, view.shape, integers.get)
    for move in moves[0] if moves else ():
        axes = tuple(None if i is None else view.axes[i] for i in move.axes)
        view = replace(view, shape=move.after, axes=axes)
    return view if moves else None
