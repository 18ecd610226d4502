"""Count what running an ONNX file takes, from its nodes and the shapes that follow; nothing runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, prod
from pathlib import Path

from onnx import NodeProto, ValueInfoProto

from sane_onnx.constants import Constant
from sane_onnx.fixed_inputs import fixed_inputs
from sane_onnx.model_file.inline import InlinedModel, inline_model
from sane_onnx.model_file.known_integers import infer_values
from sane_onnx.model_file.proto import STANDARD, invalid_model
from sane_onnx.model_file.shapes import Shape, infer_graph, value_kinds
from sane_onnx.model_file.topological_order import sort_topologically
from sane_onnx.operators import attributes
from sane_onnx.operators.products import is_uncounted, products
from sane_onnx.read import OnnxTensors, read
from sane_onnx.tensors import StoredTensor, torch_dtype
from sane_plugins.cost import CostOptions, NetworkCost
from sane_plugins.errors import SourceError
from sane_plugins.weights import RUNNING

# Their output is their input's memory under another shape.
_VIEWS = ("Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_ROUNDS = 80  # of shapes that decide integers that decide shapes: often one for each block
_MAX_NAMED = 5  # operators in a note


class UnknownShapeError(Exception):
    """A value whose shape, or whose type, does not follow from the file."""


def count_cost(path: Path, options: CostOptions) -> NetworkCost:
    """Return what a pass takes. Raises `SourceError` where a shape that products need is not known."""
    graph = read(path)
    tensors = graph.tensors
    assert isinstance(tensors, OnnxTensors)
    try:
        inlined = inline_model(tensors.model, tensors.files, path)
        inputs = fixed_inputs(tensors.model, inlined, options, path)
        inlined.inputs.update(inputs.values)
        nodes = sort_topologically(inlined.nodes)
        shapes, integers = infer_values(tensors.model, inlined, nodes, _ROUNDS)
        computed = {name: x for name, x in integers.items() if name not in inlined.constants}
        kinds = value_kinds(infer_graph(tensors.model, inlined, nodes, computed))
        count = _Count(path, inlined, shapes, kinds, inputs.values)
        count.run(nodes)
    except (ValueError, RecursionError, OverflowError) as error:
        raise invalid_model(path, str(error)) from error
    params = [param for param in graph.params if param.role not in RUNNING]
    notes = [*inputs.notes, *count.notes()]
    if options.latency is not None:
        notes.append("ONNX files are not run, so no latency is measured")
    return NetworkCost(
        inputs=tuple(inputs.shapes),
        parameters=sum(prod(param.shape) for param in params),
        macs=count.macs,
        activations=count.activations,
        layers=sum(bool(layer.params) for layer in graph.layers),
        weight_bytes=count.weight_bytes,
        peak_bytes=None if count.unknown else count.weight_bytes + count.peak_bytes,
        grouped_macs=count.grouped_macs,
        operations=count.operations,
        moved_bytes=None if count.unknown else count.moved_bytes,
        notes=tuple(notes),
    )


@dataclass
class _Count:
    """Counts the nodes that depend on the inputs, in order, and which values live at one time."""

    path: Path
    inlined: InlinedModel
    shapes: Mapping[str, Shape]
    kinds: Mapping[str, int]
    inputs: Mapping[str, ValueInfoProto]
    macs: int = 0
    activations: int = 0
    grouped_macs: int = 0
    operations: int = 0
    moved_bytes: int = 0
    peak_bytes: int = 0
    unknown: str = ""
    uncounted: set[str] = field(default_factory=set)
    has_branches: bool = False

    @property
    def weight_bytes(self) -> int:
        """Return how many bytes all constants take as they are stored."""
        return sum(map(_stored_bytes, self.inlined.constants.values()))

    def run(self, nodes: Sequence[NodeProto]) -> None:
        """Count all nodes. Raises `SourceError` where the shape of a product is not known."""
        reached = {*self.inputs}
        live = []
        for node in nodes:
            if reached.intersection(node.input):
                reached.update(filter(None, node.output))
                live.append(node)
        for node in live:
            self._count(node)
        self._follow_memory(live, reached)

    def notes(self) -> list[str]:
        """Return what a reader should know of the counts."""
        notes = []
        if self.uncounted:
            notes.append(
                f"MACs of {', '.join(sorted(self.uncounted)[:_MAX_NAMED])} are not counted"
            )
        if self.has_branches:
            notes.append("all branches are counted, and the bodies of loops once")
        if self.unknown:
            notes.append(f"memory is not known: the size of '{self.unknown}' depends on values")
        return notes

    def _count(self, node: NodeProto) -> None:
        self.has_branches |= bool(self.inlined.with_subgraphs.intersection(node.output[:1]))
        self.operations += not _is_view(node)
        try:
            found = products(node, self._sizes)
        except UnknownShapeError as error:
            raise SourceError(
                self.path,
                f"the shape of '{error}' ({node.op_type} '{node.name or node.output[0]}') does not"
                " follow from the file",
                "its cost needs it",
                "export it with shapes that do not depend on values",
            ) from error
        except (ValueError, IndexError):  # a form of the operator that has no rule
            self.uncounted.add(node.op_type)
            return
        if found is not None:
            self.macs += found.macs
            self.activations += found.values
            if attributes.integer(node, "group", 1) > 1:
                self.grouped_macs += found.macs
        elif is_uncounted(node):
            self.uncounted.add(f"{node.domain}.{node.op_type}".strip("."))

    def _follow_memory(self, nodes: Sequence[NodeProto], reached: set[str]) -> None:
        """Add up, node by node, the bytes of values that are still needed; inputs are held throughout."""
        owner: dict[str, str] = {}
        last_use: dict[str, int] = {}
        for i, node in enumerate(nodes):
            shares = _is_view(node) and node.input[0] in reached
            for name in filter(None, node.output):
                owner[name] = owner.get(node.input[0], node.input[0]) if shares else name
            for name in reached.intersection((*node.input, *node.output)):
                last_use[owner.get(name, name)] = i
        kept = {owner.get(name, name) for name in (*self.inlined.outputs, *self.inputs)}
        ends: dict[int, list[str]] = {}
        for name, i in last_use.items():
            if name not in kept:
                ends.setdefault(i, []).append(name)
        try:
            living = self.peak_bytes = sum(map(self._bytes, self.inputs))
            for i, node in enumerate(nodes):
                made = [name for name in node.output if name and owner[name] == name]
                living += sum(map(self._bytes, made))
                self.peak_bytes = max(self.peak_bytes, living)
                if not _is_view(node):
                    read_or_made = [*filter(None, node.input), *made]
                    self.moved_bytes += sum(map(self._bytes, read_or_made))
                living -= sum(map(self._bytes, ends.get(i, ())))
        except UnknownShapeError as error:
            self.unknown = str(error)

    def _sizes(self, name: str) -> tuple[int, ...]:
        shape = self.shapes.get(name)
        if shape is None or any(size is None or size < 0 for size in shape):
            raise UnknownShapeError(name)
        return tuple(size for size in shape if size is not None)

    def _bytes(self, name: str) -> int:
        constant = self.inlined.constants.get(name)
        if constant is not None:
            return _stored_bytes(constant)
        dtype = torch_dtype(self.kinds.get(name, 0))
        if dtype is None:
            raise UnknownShapeError(name)
        return prod(self._sizes(name)) * dtype.itemsize


def _is_view(node: NodeProto) -> bool:
    return node.domain in STANDARD and node.op_type in _VIEWS


def _stored_bytes(constant: Constant) -> int:
    if isinstance(constant, StoredTensor):
        return ceil(constant.size * constant.bits / 8)
    return prod(constant.shape) * (constant.dtype.itemsize if constant.dtype else 0)
