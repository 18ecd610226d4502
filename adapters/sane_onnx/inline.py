"""A model with its branches, loop bodies and functions laid out in line, every value under its own name.

Nothing is run: a loop's body appears once, a branch whether or not it would be taken.
"""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
)

from sane_onnx.constants import Filled, Numbers, Source, Sparse
from sane_onnx.external_data import ExternalFiles
from sane_onnx.proto import STANDARD, constant_value, no_model, require_unique, subgraphs
from sane_onnx.tensors import StoredTensor

# Functions may call functions, so that a short file can stand for any number of nodes.
_MOST_NODES, _DEEPEST = 50_000, 60
_INNER = (
    AttributeProto.GRAPH,
    AttributeProto.GRAPHS,
    AttributeProto.TENSOR,
    AttributeProto.TENSORS,
    AttributeProto.SPARSE_TENSOR,
    AttributeProto.SPARSE_TENSORS,
)
Names = MutableMapping[str, str]


@dataclass
class Flat:
    """All nodes of a model on one level, as copies without the graphs and tensors in them.

    `constants` holds what the file keeps, by key; `owned` the keys of what a node keeps itself, by
    its first output; `holders` the first outputs of nodes that had graphs; `plain` the constants that
    stood in Constant nodes.
    """

    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, Source] = field(default_factory=dict)
    inputs: dict[str, ValueInfoProto] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    owned: dict[str, dict[str, str]] = field(default_factory=dict)
    holders: set[str] = field(default_factory=set)
    plain: set[str] = field(default_factory=set)


def flatten(model: ModelProto, files: ExternalFiles, path: Path) -> Flat:
    """Lay a model out. Raises `SourceError` for functions that never end and names given twice."""
    return _Flattener(model, files, path).run(model.graph)


class _Flattener:
    def __init__(self, model: ModelProto, files: ExternalFiles, path: Path) -> None:
        self._files, self._path, self.flat = files, path, Flat()
        self._functions = {(f.domain, f.name, f.overload): f for f in model.functions}
        self._seen: dict[int, str] = {}
        self._alive: list[object] = []
        self._taken: set[str] = set()
        self._again: Counter[str] = Counter()
        self._met = 0

    def run(self, graph: GraphProto) -> Flat:
        names: Names = {}
        self._taken |= {name for node in graph.node for name in (*node.input, *node.output)}
        self._taken |= {x.name for x in (*graph.input, *graph.initializer)}
        self._graph(graph, names, "", 0)
        self.flat.outputs = [names.get(value.name, value.name) for value in graph.output]
        return self.flat

    def _graph(self, graph: GraphProto, names: Names, prefix: str, depth: int) -> None:
        """Add a graph; `names` gains what each of its values is called in the flat model."""
        require_unique(self._path, graph)
        kept = {x.name for x in graph.initializer} | {
            x.values.name for x in graph.sparse_initializer
        }
        for tensor in graph.initializer:
            key = self._name(prefix, tensor.name)
            names[tensor.name] = self._keep(tensor, key, self._stored(tensor))
        for sparse in graph.sparse_initializer:
            name = sparse.values.name
            source = Sparse(sparse, self._stored, self._place)
            names[name] = self._keep(sparse, self._name(prefix, name), source)
        for value in graph.input:
            if value.name not in kept:  # a default is an input too
                names[value.name] = self._name(prefix, value.name)
                self.flat.inputs[names[value.name]] = value
        self._nodes(graph.node, names, prefix, depth)

    def _nodes(self, nodes: Iterable[NodeProto], names: Names, prefix: str, depth: int) -> None:
        if depth > _DEEPEST:
            raise no_model(self._path, "its functions or graphs are nested without end")
        nodes = list(nodes)
        for node in nodes:
            names.update({x: self._name(prefix, x) for x in node.output if x})
        for node in nodes:
            if constant_value(node) is not None:
                self._constant(node, names)
        for node in nodes:
            if constant_value(node) is None:
                self._node(node, names, prefix, depth)

    def _node(self, node: NodeProto, names: Names, prefix: str, depth: int) -> None:
        self._met += 1  # calls that give nothing take time as well
        if self._met > _MOST_NODES and depth:
            raise no_model(self._path, f"its functions stand for more than {_MOST_NODES} nodes")
        function = self._functions.get((node.domain, node.op_type, node.overload))
        label = f"{prefix}{node.name or (node.output[0] if node.output else node.op_type)}/"
        if function is not None:
            self._call(node, function, names, label, depth)
            return
        flat = NodeProto(op_type=node.op_type, domain=node.domain, name=node.name)
        flat.input.extend(names.get(name, name) if name else "" for name in node.input)
        flat.output.extend(names[name] if name else "" for name in node.output)
        flat.attribute.extend(a for a in node.attribute if a.type not in _INNER)
        for name, graph in subgraphs(node):
            inner: Names = ChainMap({}, names)
            self._graph(graph, inner, f"{label}{name}/", depth + 1)
            flat.input.extend(inner.get(value.name, value.name) for value in graph.output)
            self.flat.holders.update(flat.output[:1])
        if self._filled(node, flat):
            return
        owned = dict(self._attributes(node, label))
        if owned and flat.output:
            self.flat.owned[flat.output[0]] = owned
        self.flat.nodes.append(flat)

    def _call(
        self, node: NodeProto, function: FunctionProto, names: Names, label: str, depth: int
    ) -> None:
        """Put a function's body in the place of a call."""
        given = [names.get(name, name) if name else "" for name in node.input]
        inner: Names = dict(zip(function.input, given, strict=False))
        wanted = dict(zip(function.output, node.output, strict=False))
        self._nodes(_bound(function, node), inner, label, depth + 1)
        for name, outer in wanted.items():
            if outer:
                copy = NodeProto(op_type="Identity", output=[names[outer]])
                copy.input.append(inner.get(name, name))
                self.flat.nodes.append(copy)

    def _constant(self, node: NodeProto, names: Names) -> None:
        attribute = constant_value(node)
        assert attribute is not None
        sparse = attribute.type == AttributeProto.SPARSE_TENSOR
        part = attribute.sparse_tensor if sparse else attribute.t
        key = names[node.output[0]]
        source = (
            Sparse(part, self._stored, self._place)
            if sparse
            else StoredTensor(part, f"{self._path}, {node.output[0]!r}", self._files)
        )
        names[node.output[0]] = key = self._keep(part, key, source)
        self.flat.plain.add(key)

    def _filled(self, node: NodeProto, flat: NodeProto) -> bool:
        """Take a ConstantOfShape node of known shape as the constant that it makes."""
        if node.op_type != "ConstantOfShape" or node.domain not in STANDARD or len(node.input) != 1:
            return False
        shape = self.flat.constants.get(flat.input[0])
        value = next((a.t for a in node.attribute if a.type == AttributeProto.TENSOR), None)
        if not isinstance(shape, StoredTensor) or not flat.output or len(shape.shape) != 1:
            return False
        if shape.tensor.data_type != TensorProto.INT64 or shape.size > 8 or value is None:
            return False
        dims = tuple(int(x) for x in shape.read().tolist())
        stored = StoredTensor(value, f"{self._path}, {node.output[0]!r}", self._files)
        self._keep(node, flat.output[0], Filled(node, dims, stored, self._place))
        return True

    def _attributes(self, node: NodeProto, label: str) -> Iterator[tuple[str, str]]:
        """Keep the tensors and lists of numbers that a node holds itself; yield attribute and key."""
        lists = {a.name: a for a in node.attribute if a.floats}
        classes = len(lists["intercepts"].floats) if "intercepts" in lists else 0
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                source: Source = self._stored(attribute.t)
            elif attribute.floats:
                count = len(attribute.floats)
                is_matrix = attribute.name == "coefficients" and classes and not count % classes
                shape = (classes, count // classes) if is_matrix else (count,)
                source = Numbers(attribute, shape)
            else:
                continue
            key = self._fresh(label + attribute.name)
            yield attribute.name, self._keep(attribute, key, source)

    def _stored(self, tensor: TensorProto) -> StoredTensor:
        return StoredTensor(tensor, self._place, self._files)

    @property
    def _place(self) -> str:
        return str(self._path)

    def _keep(self, part: object, key: str, source: Source) -> str:
        """Keep a constant; one that is met again, in a second call, has the key that it had."""
        if id(part) not in self._seen:
            self._seen[id(part)] = key
            self._alive.append(part)  # an id is only good while its object lives
            self.flat.constants[key] = source
        return self._seen[id(part)]

    def _name(self, prefix: str, name: str) -> str:
        """Return what a value is called: in the main graph, whose names are given, by its own name."""
        return self._fresh(prefix + name) if prefix else name

    def _fresh(self, name: str) -> str:
        fresh = name
        while fresh in self._taken:
            self._again[name] += 1
            fresh = f"{name}'{self._again[name]}"
        self._taken.add(fresh)
        return fresh


def _bound(function: FunctionProto, call: NodeProto) -> list[NodeProto]:
    """Return a function's nodes with the attributes of a call in the places that ask for them."""
    given: Mapping[str, AttributeProto] = {
        **{a.name: a for a in function.attribute_proto},
        **{a.name: a for a in call.attribute},
    }
    return [_filled_in(node, given) if _asks(node) else node for node in function.node]


def _asks(node: NodeProto) -> bool:
    inner = (n for _, graph in subgraphs(node) for n in graph.node)
    return any(a.ref_attr_name for a in node.attribute) or any(map(_asks, inner))


def _filled_in(node: NodeProto, given: Mapping[str, AttributeProto]) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    del copy.attribute[:]
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            copy.attribute.append(attribute)
        elif attribute.ref_attr_name in given:
            copy.attribute.append(given[attribute.ref_attr_name])
            copy.attribute[-1].name = attribute.name
    for _, graph in subgraphs(copy):
        nodes = [_filled_in(inner, given) for inner in graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
    return copy
