"""Inline functions and subgraphs: a model's nodes in one list, every value under a unique name.

Nothing is run: a loop's body appears once, a branch whether or not it would be taken. onnx.inliner inlines
functions only, and copies tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    ValueInfoProto,
)

from sane_onnx.constants import Constant, ConstantOfShape, FloatsAttribute, SparseConstant
from sane_onnx.model_file import limits
from sane_onnx.model_file.external_data import ExternalFiles
from sane_onnx.model_file.proto import (
    STANDARD,
    constant_value,
    invalid_model,
    require_unique,
    subgraphs,
)
from sane_onnx.tensors import StoredTensor
from sane_plugins.errors import SourceError

_NESTED_ATTRIBUTES = (
    AttributeProto.GRAPH,
    AttributeProto.GRAPHS,
    AttributeProto.TENSOR,
    AttributeProto.TENSORS,
    AttributeProto.SPARSE_TENSOR,
    AttributeProto.SPARSE_TENSORS,
)
_COPY_BYTES = 512  # that a copy of a node takes at least, with its attributes
_LINK_BYTES = 32  # that an input or an output takes at least, beside its name


@dataclass
class InlinedModel:
    """A model's nodes in one list, as copies without their subgraphs and tensors.

    `file_bytes` is the model's size without the files beside it.
    `constants` holds all constants of the file by key. `attribute_constants` are the keys of constants in a
    node's attributes, by attribute, for the node's first output. `with_subgraphs` are the first outputs of
    nodes that had subgraphs, `constant_nodes` the keys of constants from Constant nodes.
    """

    file_bytes: int
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)
    inputs: dict[str, ValueInfoProto] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    attribute_constants: dict[str, dict[str, str]] = field(default_factory=dict)
    with_subgraphs: set[str] = field(default_factory=set)
    constant_nodes: set[str] = field(default_factory=set)


def inline_model(model: ModelProto, files: ExternalFiles, path: Path) -> InlinedModel:
    """Inline a model. Raises `SourceError` for endless recursion, and for a name given to two values."""
    return _Inliner(model, files, path).run(model.graph)


class _Scope:
    """Unique names of values by their names in the file; values of unknown names keep them."""

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        self._names = dict(names or {})
        self._hidden: list[dict[str, str | None]] = []

    def __getitem__(self, name: str) -> str:
        return self._names.get(name, name)

    def __setitem__(self, name: str, unique: str) -> None:
        if self._hidden:
            self._hidden[-1].setdefault(name, self._names.get(name))
        self._names[name] = unique

    @contextmanager
    def inner(self) -> Iterator[None]:
        """Forget at the end of the block what names stand for inside, as for a subgraph."""
        self._hidden.append({})
        yield
        for name, unique in self._hidden.pop().items():
            if unique is None:
                del self._names[name]
            else:
                self._names[name] = unique


class _Inliner:
    def __init__(self, model: ModelProto, files: ExternalFiles, path: Path) -> None:
        self._files, self._path = files, path
        self.model = InlinedModel(file_bytes=model.ByteSize())
        self._functions = {(f.domain, f.name, f.overload): f for f in model.functions}
        self._keys: dict[int, str] = {}
        self._held_parts: list[object] = []
        self._used_names: set[str] = set()
        self._suffixes: Counter[str] = Counter()
        self._node_count = self._inlined_bytes = 0
        stored = len(model.graph.node) + len(model.graph.initializer)
        inlined = limits.allowance(limits.INLINED_NODES, self.model.file_bytes)
        self._most_nodes = stored + inlined

    def run(self, graph: GraphProto) -> InlinedModel:
        names = _Scope()
        self._used_names |= {name for node in graph.node for name in (*node.input, *node.output)}
        self._used_names |= {x.name for x in (*graph.input, *graph.initializer)}
        self._add_graph(graph, names, "", 0)
        self.model.outputs = [names[value.name] for value in graph.output]
        return self.model

    def _add_graph(self, graph: GraphProto, names: _Scope, prefix: str, depth: int) -> None:
        """Add a graph, and record the unique name of each of its values in `names`."""
        require_unique(self._path, graph)
        initializers = {x.name for x in graph.initializer} | {
            x.values.name for x in graph.sparse_initializer
        }
        for tensor in graph.initializer:
            self._count_node()
            key = self._unique_name(prefix, tensor.name)
            names[tensor.name] = self._add_constant(tensor, key, self._stored(tensor))
        for sparse in graph.sparse_initializer:
            self._count_node()
            name = sparse.values.name
            source = self._sparse(sparse)
            names[name] = self._add_constant(sparse, self._unique_name(prefix, name), source)
        for value in graph.input:
            if value.name not in initializers:  # a default is an input too
                names[value.name] = self._unique_name(prefix, value.name)
                self.model.inputs[names[value.name]] = value
        self._add_nodes(graph.node, names, prefix, depth)

    def _add_nodes(
        self, nodes: Iterable[NodeProto], names: _Scope, prefix: str, depth: int
    ) -> None:
        if depth > limits.DEPTH:
            raise invalid_model(self._path, "its functions or graphs are nested without end")
        nodes = list(nodes)
        for node in nodes:
            self._count_node(node if depth else None)
            for name in filter(None, node.output):
                names[name] = self._unique_name(prefix, name)
        for node in nodes:
            if constant_value(node) is not None:
                self._add_constant_node(node, names)
        for node in nodes:
            if constant_value(node) is None:
                self._add_node(node, names, prefix, depth)

    def _add_node(self, node: NodeProto, names: _Scope, prefix: str, depth: int) -> None:
        function = self._functions.get((node.domain, node.op_type, node.overload))
        label = f"{prefix}{node.name or (node.output[0] if node.output else node.op_type)}/"
        if function is not None:
            self._inline_call(node, function, names, label, depth)
            return
        copied = NodeProto(op_type=node.op_type, domain=node.domain, name=node.name)
        copied.input.extend(names[name] if name else "" for name in node.input)
        copied.output.extend(names[name] if name else "" for name in node.output)
        copied.attribute.extend(a for a in node.attribute if a.type not in _NESTED_ATTRIBUTES)
        for name, graph in subgraphs(node):
            with names.inner():
                self._add_graph(graph, names, f"{label}{name}/", depth + 1)
                copied.input.extend(names[value.name] for value in graph.output)
            self.model.with_subgraphs.update(copied.output[:1])
        if self._add_constant_of_shape(node, copied):
            return
        attribute_constants = dict(self._add_attribute_constants(node, label))
        if attribute_constants and copied.output:
            self.model.attribute_constants[copied.output[0]] = attribute_constants
        self.model.nodes.append(copied)

    def _inline_call(
        self, node: NodeProto, function: FunctionProto, names: _Scope, label: str, depth: int
    ) -> None:
        """Inline a call: add the function's body, and an Identity for each output."""
        arguments = [names[name] if name else "" for name in node.input]
        inner = _Scope(dict(zip(function.input, arguments, strict=False)))
        results = dict(zip(function.output, node.output, strict=False))
        self._add_nodes(self._bind_attributes(function, node), inner, label, depth + 1)
        for name, outer in results.items():
            if outer:
                copy = NodeProto(op_type="Identity", output=[names[outer]])
                copy.input.append(inner[name])
                self.model.nodes.append(copy)

    def _add_constant_node(self, node: NodeProto, names: _Scope) -> None:
        attribute = constant_value(node)
        assert attribute is not None
        sparse = attribute.type == AttributeProto.SPARSE_TENSOR
        part = attribute.sparse_tensor if sparse else attribute.t
        key = names[node.output[0]]
        source = (
            self._sparse(part)
            if sparse
            else StoredTensor(part, f"{self._path}, {node.output[0]!r}", self._files)
        )
        names[node.output[0]] = key = self._add_constant(part, key, source)
        self.model.constant_nodes.add(key)

    def _add_constant_of_shape(self, node: NodeProto, copied: NodeProto) -> bool:
        """Add the output of a ConstantOfShape node of known shape as a constant, instead of the node."""
        if node.op_type != "ConstantOfShape" or node.domain not in STANDARD or len(node.input) != 1:
            return False
        shape = self.model.constants.get(copied.input[0])
        value = next((a.t for a in node.attribute if a.type == AttributeProto.TENSOR), None)
        if not isinstance(shape, StoredTensor) or not copied.output or len(shape.shape) != 1:
            return False
        if shape.tensor.data_type != TensorProto.INT64 or shape.size > 8 or value is None:
            return False
        dims = tuple(int(x) for x in shape.read().tolist())
        stored = StoredTensor(value, f"{self._path}, {node.output[0]!r}", self._files)
        self._add_constant(node, copied.output[0], ConstantOfShape(node, dims, stored, self._place))
        return True

    def _add_attribute_constants(self, node: NodeProto, label: str) -> Iterator[tuple[str, str]]:
        """Add the tensors and lists of floats in a node's attributes; yield attribute and key."""
        lists = {a.name: a for a in node.attribute if a.floats}
        classes = len(lists["intercepts"].floats) if "intercepts" in lists else 0
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                source: Constant = self._stored(attribute.t)
            elif attribute.floats:
                count = len(attribute.floats)
                is_matrix = attribute.name == "coefficients" and classes and not count % classes
                shape = (classes, count // classes) if is_matrix else (count,)
                source = FloatsAttribute(attribute, shape)
            else:
                continue
            self._count_node()
            key = self._unused_name(label + attribute.name)
            yield attribute.name, self._add_constant(attribute, key, source)

    def _stored(self, tensor: TensorProto) -> StoredTensor:
        return StoredTensor(tensor, self._place, self._files)

    def _sparse(self, sparse: SparseTensorProto) -> SparseConstant:
        most_bytes = limits.expanded_bytes(self.model.file_bytes)
        return SparseConstant(sparse, self._stored, self._place, most_bytes)

    @property
    def _place(self) -> str:
        return str(self._path)

    def _add_constant(self, part: object, key: str, source: Constant) -> str:
        """Add a constant and return its key; repeated calls of a function share the key of the first."""
        if id(part) not in self._keys:
            if problem := limits.shape_problem(source.shape):
                raise SourceError(
                    f"{self._path}, {key!r}",
                    f"the tensor is broken ({problem})",
                    "a tensor whose values can be counted is needed",
                    "export the network again",
                )
            self._keys[id(part)] = key
            self._held_parts.append(part)  # an id is unique only while its object lives
            self.model.constants[key] = source
        return self._keys[id(part)]

    def _unique_name(self, prefix: str, name: str) -> str:
        """Return the unique name of a value; names of the main graph are unchanged."""
        if not prefix:
            return name
        self._count_bytes(len(prefix) + len(name))
        return self._unused_name(prefix + name)

    def _unused_name(self, name: str) -> str:
        unused = name
        while unused in self._used_names:
            self._suffixes[name] += 1
            unused = f"{name}'{self._suffixes[name]}"
        self._used_names.add(unused)
        return unused

    def _count_node(self, node: NodeProto | None = None) -> None:
        """Count a node or a constant, and the size of a node that a function or a subgraph stands for."""
        self._node_count += 1
        if self._node_count > self._most_nodes:
            raise limits.too_many(
                self._path,
                f"its functions and graphs stand for more than {self._most_nodes} nodes and constants",
            )
        if node is not None:
            self._count_bytes(node.ByteSize() + _LINK_BYTES * (len(node.input) + len(node.output)))

    def _count_bytes(self, count: int) -> None:
        self._inlined_bytes += count
        if self._inlined_bytes > limits.INLINED_BYTES:
            raise limits.too_many(
                self._path,
                f"its functions and graphs stand for more than {limits.INLINED_BYTES >> 20} MiB of nodes",
            )

    def _bind_attributes(self, function: FunctionProto, call: NodeProto) -> list[NodeProto]:
        """Return a function's nodes, references to its attributes replaced by the call's attributes."""
        arguments: Mapping[str, AttributeProto] = {
            **{a.name: a for a in function.attribute_proto},
            **{a.name: a for a in call.attribute},
        }
        return [
            self._bind_node(node, arguments) if _refers_to_attributes(node) else node
            for node in function.node
        ]

    def _bind_node(self, node: NodeProto, arguments: Mapping[str, AttributeProto]) -> NodeProto:
        self._count_bytes(_COPY_BYTES + node.ByteSize())
        copy = NodeProto()
        copy.CopyFrom(node)
        del copy.attribute[:]
        for attribute in node.attribute:
            if not attribute.ref_attr_name:
                copy.attribute.append(attribute)
            elif attribute.ref_attr_name in arguments:
                argument = arguments[attribute.ref_attr_name]
                self._count_bytes(argument.ByteSize())
                copy.attribute.append(argument)
                copy.attribute[-1].name = attribute.name
        for _, graph in subgraphs(copy):
            nodes = [self._bind_node(inner, arguments) for inner in graph.node]
            del graph.node[:]
            graph.node.extend(nodes)
        return copy


def _refers_to_attributes(node: NodeProto) -> bool:
    inner = (n for _, graph in subgraphs(node) for n in graph.node)
    return any(a.ref_attr_name for a in node.attribute) or any(map(_refers_to_attributes, inner))
