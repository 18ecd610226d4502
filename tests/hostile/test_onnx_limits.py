"""ONNX files that are small and ask for much: little time, one sentence or what is there."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile.bounded import run

from sane_plugins.errors import SourceError
from sane_plugins.weights import MAX_AXES, WeightGraph

onnx = pytest.importorskip("onnx")
pytest.importorskip("sane_onnx")

from sane_onnx import sane_open  # noqa: E402
from sane_onnx.model_file import limits  # noqa: E402
from sane_onnx.model_file.topological_order import sort_topologically  # noqa: E402

helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto
FLOAT, INT64, INT8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT8
node, HUGE = helper.make_node, 2**40


def _array(name: str, *shape: int):
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def _integers(name: str, *values: int):
    return helper.make_tensor(name, INT64, [len(values)], values)


def _empty(name: str, kind: int, *dims: int):
    """Return a tensor of a shape, without values."""
    return TensorProto(name=name, data_type=kind, dims=dims, raw_data=b"")


def _bytes(name: str, kind: int, *dims: int):
    return TensorProto(name=name, data_type=kind, dims=dims, raw_data=bytes(int(np.prod(dims))))


def _model(path: Path, nodes, tensors=(), shape=(2, 6), more: bytes = b"", **options) -> Path:
    """Write a model with a matrix `w` beside what is asked for; `more` bytes are appended."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [_array("w", 6, 6), *tensors],
        sparse_initializer=options.pop("sparse", None),
    )
    imports = [helper.make_opsetid(domain, 21) for domain in ("", "own")]
    imports.append(helper.make_opsetid("com.microsoft", 1))
    model = helper.make_model(graph, opset_imports=imports, ir_version=10, **options)
    path.write_bytes(model.SerializeToString() + more)
    return path


def _with(*nodes):
    """Return nodes that also use `w`, and read `t`."""
    return [node("MatMul", ["x", "w"], ["h"]), *nodes, node("Add", ["h", "t"], ["y"])]


def _opened(path: Path) -> WeightGraph:
    """Open a network in at most ten seconds of processor time."""
    start = time.process_time()
    try:
        return sane_open(path)
    finally:
        assert time.process_time() - start < 10


def _refused(path: Path, *words: str) -> None:
    start = time.process_time()
    with pytest.raises(SourceError) as caught:
        sane_open(path)
    assert time.process_time() - start < 10
    assert path.name in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert all(word in str(caught.value) for word in words), str(caught.value)


# Shapes.


def _constant_of_shape(*dims: int):
    value = helper.make_tensor("v", FLOAT, [1], [1.0])
    return _with(node("ConstantOfShape", ["s"], ["t"], value=value)), [_integers("s", *dims)]


def _sparse(*dims: int, count: int = 1):
    sparse = onnx.SparseTensorProto(
        dims=dims, values=_array("t", count), indices=_integers("i", *range(count))
    )
    return {"sparse": [sparse]}


@pytest.mark.parametrize(
    "dims", [(HUGE, 0), (0, HUGE), (HUGE,), (HUGE, HUGE), (2**62, 2**62, 0), (-1,), (2**63 - 1, 0)]
)
@pytest.mark.parametrize("kind", ["ConstantOfShape", "initializer", "sparse", "quantised"])
def test_huge_shapes_take_nothing(kind: str, dims: tuple[int, ...], tmp_path: Path) -> None:
    nodes, tensors, options = _with(), [], {}
    if kind == "ConstantOfShape":
        nodes, tensors = _constant_of_shape(*dims)
    elif kind == "initializer":
        tensors = [_empty("t", FLOAT, *dims)]
    elif kind == "sparse":
        options = _sparse(*dims)
    else:
        nodes = _with(node("DequantizeLinear", ["q", "s"], ["t"]))
        tensors = [_empty("q", INT8, *dims), _array("s")]
    path = _model(tmp_path / "m.onnx", nodes, tensors, **options)
    try:
        graph = sane_open(path)
    except SourceError as error:
        assert "shape" in str(error)
        assert 0 not in dims or sum(size > 1 for size in dims) > 1
    else:
        assert [p.key for p in graph.params] == ["w"]
        assert 0 in dims or graph.missed


@pytest.mark.parametrize("command", ["inspect", "predict"])
def test_zero_values_of_a_huge_shape_by_command(command: str, tmp_path: Path) -> None:
    nodes, tensors = _constant_of_shape(HUGE, 0)
    path = _model(tmp_path / "m.onnx", nodes, tensors)
    assert run(command, path).require_small().code == 0


def test_axes_are_limited(tmp_path: Path) -> None:
    for count in (MAX_AXES + 1, 100_000):
        tensor = TensorProto(name="t", data_type=FLOAT, dims=[1] * count, raw_data=bytes(4))
        _refused(_model(tmp_path / "m.onnx", _with(), [tensor]), "axes")


@pytest.mark.parametrize("operator", ["Expand", "Tile", "Range", "Pad", "Unsqueeze", "Gather"])
def test_operators_on_constants_make_nothing(operator: str, tmp_path: Path) -> None:
    inputs = ["a", "s"] if operator != "Range" else ["zero", "end", "one"]
    scalars = [
        helper.make_tensor(n, INT64, [], [v]) for n, v in (("zero", 0), ("end", HUGE), ("one", 1))
    ]
    tensors = [_array("a", 1, 1), _integers("s", HUGE, HUGE), *scalars]
    path = _model(tmp_path / "m.onnx", _with(node(operator, inputs, ["t"])), tensors)
    assert "w" in [p.key for p in _opened(path).params]


def test_a_sparse_tensor_is_made_dense_in_proportion_to_its_file(tmp_path: Path) -> None:
    graph = _opened(_model(tmp_path / "m.onnx", _with(), **_sparse(2**28, count=5)))
    assert graph.missed == {"t": 2**28}
    assert "MiB" in graph.untouched["t"]
    graph = _opened(_model(tmp_path / "n.onnx", _with(), **_sparse(2**20, count=5)))
    assert graph.tensors["t"].sum() == 5


# Ranks and lists that double.


def _doubling(name: str):
    if name == "ranks":
        steps = [node("Gather", [f"v{i}"] * 2, [f"v{i + 1}"]) for i in range(1, 40)]
        return [node("Shape", ["x"], ["v0"]), node("Unsqueeze", ["v0", "axis"], ["v1"]), *steps]
    if name == "deep types":
        return [node("Optional", [f"v{i}" if i else "x"], [f"v{i + 1}"]) for i in range(5000)]
    if name == "many axes":
        return [
            node("Unsqueeze", [f"v{i}" if i else "x", "axis"], [f"v{i + 1}"]) for i in range(5000)
        ]
    nodes = [node("Shape", ["x"], ["v0"])]
    for i in range(40):
        nodes.append(node("Concat", [f"v{i}"] * 2, [f"l{i}"], axis=0))
        if name == "lists":
            nodes.append(node("Identity", [f"l{i}"], [f"v{i + 1}"]))
        else:
            nodes += [node(name, ["one", f"l{i}"][name == "ConstantOfShape" :], [f"t{i}"])]
            nodes += [node("Shape", [f"t{i}"], [f"v{i + 1}"])]
    return nodes


@pytest.mark.parametrize(
    "name", ["ranks", "lists", "Expand", "ConstantOfShape", "Reshape", "deep types", "many axes"]
)
def test_what_doubles_with_every_node_is_not_worked_out(name: str, tmp_path: Path) -> None:
    tensors = [_integers("axis", 0), _array("one", 1), _array("t", 6)]
    path = _model(tmp_path / "m.onnx", [*_doubling(name), *_with()], tensors)
    assert {"w", "t"} <= {p.key for p in _opened(path).params}


def test_long_names_of_sizes_are_not_copied(tmp_path: Path) -> None:
    chain = [node("Relu", [f"v{i}" if i else "x"], [f"v{i + 1}"]) for i in range(5000)]
    path = _model(tmp_path / "m.onnx", [*chain, *_with()], [_array("t", 6)], shape=("n" * 10**6, 6))
    assert _opened(path).size == 42


# Walks.

CHAINS: dict[str, Callable[[str, str], object]] = {
    "Transpose": lambda a, b: node("Transpose", [a], [b], perm=[1, 0]),
    "Reshape": lambda a, b: node("Reshape", [a, "sizes"], [b]),
    "Add": lambda a, b: node("Add", [a, a], [b]),
    "Concat": lambda a, b: node("Concat", [a, a], [b], axis=0),
    "Conv": lambda a, b: node("Conv", [a, "kernel"], [b]),
}


@pytest.mark.parametrize("start", ["x", "w"])
@pytest.mark.parametrize("name", CHAINS)
def test_chains_are_walked_in_linear_time(name: str, start: str, tmp_path: Path) -> None:
    seconds = []
    for count in (1000, 4000):
        chain = [CHAINS[name](f"v{i}" if i else start, f"v{i + 1}") for i in range(count)]
        tensors = [_integers("sizes", 6, 6), _array("kernel", 6, 6, 1, 1), _array("t", 6)]
        path = _model(tmp_path / f"{count}.onnx", [*_with(), *reversed(chain)], tensors)
        begin = time.process_time()
        sane_open(path)
        seconds.append(time.process_time() - begin)
    assert seconds[1] < 10 * seconds[0] + 0.2, seconds


def test_a_node_before_its_many_inputs_is_sorted_in_linear_time() -> None:
    makers = [node("Relu", ["x"], [f"v{i}"]) for i in range(20_000)]
    last = node("Sum", [f"v{i}" for i in range(20_000)], ["y"])
    start = time.process_time()
    assert sort_topologically([last, *makers])[-1] is last
    assert time.process_time() - start < 5


def test_a_cycle_of_casts_ends(tmp_path: Path) -> None:
    nodes = [
        node("MatMulInteger", ["x", "q"], ["m"]),
        node("Cast", ["m", "c"], ["b"], to=FLOAT),
        node("Cast", ["b"], ["c"], to=FLOAT),
        node("MatMul", ["x", "w"], ["y"]),
    ]
    path = _model(tmp_path / "m.onnx", nodes, [_bytes("q", INT8, 6, 6)])
    try:
        _opened(path)
    except SourceError as error:
        assert "nothing before it gives" in str(error)


# What stands for more than it is.


def _branches(depth: int):
    graph = helper.make_graph([node("MatMul", ["x", "w"], ["o"])], "g", [], [])
    for _ in range(depth):
        inner = node("If", ["x"], ["o"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([inner], "g", [], [])
    branch = graph.node[0]
    branch.output[0] = "y"
    return branch


def _function(name: str, body, attributes=()):
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, ["a"], ["b"], body, imports, attributes)


def _call(name: str, output: str, **attributes):
    return node(name, ["a"], [output], domain="own", **attributes)


def _calls(twice: bool, depth: int):
    bodies = [[node("Relu", ["a"], ["b"])]]
    for i in range(depth):
        bodies.append([_call(f"f{i}", "b"), *[_call(f"f{i}", "c")] * twice])
    return [_function(f"f{i}", body) for i, body in enumerate(bodies)]


def test_branches_nested_sixteen_deep_are_refused_at_once(tmp_path: Path) -> None:
    path = _model(tmp_path / "m.onnx", [_branches(16)])
    _refused(path, "nodes")
    run("inspect", path).require_small().require_sentence()


def test_nested_branches_within_the_limit_are_read_in_linear_time(tmp_path: Path) -> None:
    seconds = []
    for depth in (8, 11):
        path = _model(tmp_path / f"{depth}.onnx", [_branches(depth)])
        start = time.process_time()
        assert sane_open(path).size == 36
        seconds.append(time.process_time() - start)
    assert seconds[1] < 24 * seconds[0] + 0.2, seconds


@pytest.mark.parametrize("depth", [40, limits.DEPTH + 1, 2000])
@pytest.mark.parametrize("twice", [True, False])
def test_functions_that_call_each_other(twice: bool, depth: int, tmp_path: Path) -> None:
    nodes = [node(f"f{depth}", ["x"], ["h"], domain="own"), node("MatMul", ["h", "w"], ["y"])]
    path = _model(tmp_path / "m.onnx", nodes, functions=_calls(twice, depth))
    if depth < limits.DEPTH and not twice:
        assert _opened(path).size == 36
    else:
        _refused(path, "functions")


def test_a_function_that_calls_itself_is_refused(tmp_path: Path) -> None:
    nodes = [node("f", ["x"], ["h"], domain="own"), node("MatMul", ["h", "w"], ["y"])]
    path = _model(tmp_path / "m.onnx", nodes, functions=[_function("f", [_call("f", "b")])])
    _refused(path, "without end")


@pytest.mark.parametrize("what", ["tensor", "graph", "constants", "wide"])
def test_functions_do_not_multiply_what_they_are_given(what: str, tmp_path: Path) -> None:
    def refers(operator: str, kind: int, output: str):
        made = node(operator, ["a"], [output], domain="own")
        made.attribute.add(name="t", ref_attr_name="t", type=kind)
        return made

    kinds = onnx.AttributeProto
    if what == "tensor":
        body = [refers("Foo", kinds.TENSOR, f"b{i or ''}") for i in range(1000)]
        functions, given = [_function("f", body, ["t"])], {"t": _array("", 300, 300)}
    elif what == "graph":
        functions = [_function("f0", [refers("Foo", kinds.GRAPH, "b")], ["t"])]
        for i in range(40):
            inner = helper.make_graph(
                [refers("Foo", kinds.GRAPH, f"c{j}") for j in (0, 1)], "g", [], []
            )
            functions.append(_function(f"f{i + 1}", [_call(f"f{i}", "b", t=inner)], ["t"]))
        functions[-1].name = "f"
        given = {"t": helper.make_graph([node("Relu", ["x"], ["q"])], "g", [], [])}
    else:
        values = helper.make_tensor("", FLOAT, [1], [1.0])
        wide = [node("Sum", ["a"] * 20_000, ["b"])]
        constants = [node("Constant", [], [f"c{i}"], value=values) for i in range(2000)]
        functions, given = [_function("f", wide if what == "wide" else constants)], {}
    calls = [
        node("f", ["x"], [f"h{i}"], domain="own", **given) for i in range(1 if given else 2000)
    ]
    nodes = [*calls, node("MatMul", ["x", "w"], ["y"])]
    _refused(_model(tmp_path / "m.onnx", nodes, functions=functions), "functions and graphs")


def test_long_labels_are_not_repeated_without_end(tmp_path: Path) -> None:
    inner = helper.make_graph([node("Relu", ["x"], [f"r{i}"]) for i in range(3000)], "g", [], [])
    for length, word in ((100_000, "characters"), (900, "")):
        path = _model(
            tmp_path / f"{length}.onnx",
            [*_with(), node("If", ["x"], ["z"], name="n" * length, b=inner)],
            [_array("t", 6)],
        )
        if word:
            _refused(path, word)
        else:
            assert _opened(path).size == 42


# What two bytes of a file ask for.


def _field(number: int, data: bytes) -> bytes:
    def varint(value: int) -> bytes:
        head = b"" if value < 128 else bytes([value & 127 | 128])
        return head + (varint(value >> 7) if head else bytes([value]))

    return varint(number << 3 | 2) + varint(len(data)) + data


EMPTY_PARTS = {
    "nodes": _field(7, _field(1, b"") * 1_200_000),
    "initializers": _field(7, _field(5, b"") * 1_200_000),
    "inputs of a node": _field(7, _field(1, _field(1, b"") * 1_200_000)),
    "attributes": _field(7, _field(1, _field(5, b"") * 1_200_000)),
    "graphs": _field(7, _field(1, _field(5, _field(11, b"") * 1_200_000))),
    "sizes": _field(7, _field(11, _field(2, _field(1, _field(2, _field(1, b"") * 1_200_000))))),
    "training": _field(20, b"") * 1_200_000,
    "functions": _field(25, b"") * 1_200_000,
    "metadata": _field(14, b"") * 1_200_000,
}


@pytest.mark.parametrize("name", EMPTY_PARTS)
def test_millions_of_empty_parts_are_refused_before_they_are_parsed(
    name: str, tmp_path: Path
) -> None:
    _refused(
        _model(tmp_path / "m.onnx", _with(), [_array("t", 6)], more=EMPTY_PARTS[name]), "at most"
    )


def test_lists_of_numbers_are_no_parts(tmp_path: Path) -> None:
    nodes = _with(node("Foo", ["x"], ["f"], domain="own", numbers=[1] * 1_500_000))
    assert _opened(_model(tmp_path / "m.onnx", nodes, [_array("t", 6)])).size == 42


def test_graphs_nested_a_thousand_deep(tmp_path: Path) -> None:
    graph = _field(1, _field(4, b"Relu"))
    for _ in range(1000):
        graph = _field(1, _field(5, _field(6, graph)))
    _refused(_model(tmp_path / "m.onnx", _with(), [_array("t", 6)], more=_field(7, graph)))


@pytest.mark.parametrize("count", [5000, 20_000])
@pytest.mark.parametrize("kind", ["initializers", "lists in attributes"])
def test_a_million_tiny_weights_are_no_network(kind: str, count: int, tmp_path: Path) -> None:
    nodes, tensors = _with(), [_array("t", 6)]
    if kind == "initializers":
        tensors += [helper.make_tensor(f"t{i}", FLOAT, [1], [1.0]) for i in range(count)]
    else:
        made = node("Foo", ["x"], ["f"], domain="own")
        made.attribute.extend(helper.make_attribute("a", [1.0]) for _ in range(count))
        nodes = [*nodes, made]
    _refused(_model(tmp_path / "m.onnx", nodes, tensors), "weights")


# Quantised weights.


@pytest.mark.parametrize(
    ("scales", "axis", "block"),
    [
        ((1, 10**6), 1, 10**4),
        ((2, 10**4), 0, 2**60),
        ((1, 2), 1, -3),
        ((2, 3, 4), 1, 0),
        ((5,), 7, 0),
        ((0,), -9, 0),
    ],
)
def test_scales_that_do_not_fit_take_no_memory(scales, axis, block, tmp_path: Path) -> None:
    made = node("DequantizeLinear", ["q", "s"], ["t"], axis=axis)
    made.attribute.append(helper.make_attribute("block_size", block))
    path = _model(
        tmp_path / "m.onnx", _with(made), [_bytes("q", INT8, 1, 10**4), _array("s", *scales)]
    )
    try:
        graph = _opened(path)
    except SourceError as error:
        assert "scales" in str(error)
    else:
        assert sum(x.numel() for _, x in graph.items()) == graph.size < 10**5


@pytest.mark.parametrize(
    ("rows", "columns", "bits", "block", "count"),
    [
        (6, HUGE, 4, 16, 96),
        (HUGE, 6, 4, 16, 96),
        (6, 6, 3, 16, 36),
        (6, 6, 4, 0, 36),
        (6, 6, 4, 2**60, 36),
        (3, 1, 2, 1, 3),
    ],
)
def test_packed_weights_of_odd_sizes(rows, columns, bits, block, count, tmp_path: Path) -> None:
    sizes = {"N": rows, "K": columns, "bits": bits, "block_size": block}
    made = node("MatMulNBits", ["x", "q", "s"], ["t"], domain="com.microsoft", **sizes)
    tensors = [_bytes("q", TensorProto.UINT8, 6, 1, 8), _array("s", 6)]
    graph = _opened(_model(tmp_path / "m.onnx", _with(made), tensors))
    assert graph.missed == {"q": count}


@pytest.mark.parametrize("kind", ["BOOL", "INT32", "FLOAT", "COMPLEX64", "STRING", "FLOAT8E5M2"])
def test_places_of_sparse_values_are_whole_numbers(kind: str, tmp_path: Path) -> None:
    indices = TensorProto(name="i", data_type=TensorProto.DataType.Value(kind), dims=[1])
    if kind == "STRING":
        indices.string_data.append(b"1")
    else:
        indices.raw_data = bytes({"BOOL": 1, "FLOAT8E5M2": 1, "COMPLEX64": 8}.get(kind, 4))
    sparse = onnx.SparseTensorProto(dims=[6], values=_array("t", 1), indices=indices)
    _refused(_model(tmp_path / "m.onnx", _with(), sparse=[sparse]), kind, "INT64 is needed")


@pytest.mark.parametrize("kind", ["UINT64", "INT8", "BOOL", "COMPLEX128"])
def test_scales_are_fractions(kind: str, tmp_path: Path) -> None:
    scale = TensorProto(name="s", data_type=TensorProto.DataType.Value(kind))
    scale.raw_data = bytes({"UINT64": 8, "COMPLEX128": 16}.get(kind, 1))
    nodes = _with(node("DequantizeLinear", ["q", "s"], ["d"]), node("MatMul", ["h", "d"], ["t"]))
    _refused(_model(tmp_path / "m.onnx", nodes, [_bytes("q", INT8, 6, 6), scale]), "its scales are")
