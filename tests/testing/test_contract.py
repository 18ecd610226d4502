"""The contract kit: what is right passes, and every planted fault is found and named."""

import random
import sys
from functools import partial
from importlib.metadata import entry_points

import numpy as np
import pytest
import torch

from sane_plugins import Encoding, Estimate, Host, hookimpl
from sane_plugins.engines import Done, Lost
from sane_plugins.errors import PluginError
from sane_plugins.features import ENCODERS
from sane_plugins.generation import KDE, Gaussian
from sane_plugins.properties import (
    embedded_heads,
    extract_features,
    fit_head,
    load_heads,
    save_heads,
)
from sane_plugins.testing import (
    ContractError,
    check_encoder,
    check_engine,
    check_file_format,
    check_head,
    check_light_import,
    check_sampler,
    host_with,
    write_tiny_zoo,
)

pytest_plugins = ["pytester"]

FORMAT = """
from pathlib import Path
from sane_plugins import hookimpl
{top}
@hookimpl
def sane_open(source):
    if {foreign}:
        return None
    {opening}
    import numpy as np, torch
    from sane_plugins.formats import from_state_dict
    with np.load(source, allow_pickle=False) as file:
        tensors = {{key: torch.from_numpy(file[key]){read} for key in file.files}}
    return from_state_dict(tensors, str(source))
@hookimpl
def sane_check_save(graph, target):
    if target.suffix != ".nets":
        return None
    from sane_plugins.errors import SourceError
    for param in graph.params:
        if str(param.dtype) in {refused}:
            raise SourceError(target, f"a tensor is of {{param.dtype}}", "NumPy has none", "convert it")
    return True
@hookimpl
def sane_save(graph, target):
    if target.suffix != ".nets":
        return None
    {checking}
    import numpy as np
    from sane_plugins.atomic_files import write_whole
    def write(partial):
        with partial.open("wb") as file:
            np.savez(file, **{{k: {written} for k, v in graph.state_dict().items()}})
            {writing}
    {saving}
    return write_whole(target, write)
"""
RIGHT = {
    "top": "",
    "foreign": 'not isinstance(source, (str, Path)) or Path(source).suffix != ".nets"',
    "opening": "",
    "read": "",
    "saving": "",
    "refused": ["torch.bfloat16"],
    "checking": "sane_check_save(graph, target)",
    "written": "v.numpy()",
    "writing": "",
}


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Return a function that writes and imports a plugin that reads and writes .nets files."""
    monkeypatch.syspath_prepend(str(tmp_path))
    # How long an import may take has a test of its own: here a busy machine would fail any of the faults.
    patient = partial(check_light_import, seconds=600)
    monkeypatch.setattr("sane_plugins.testing.file_formats.check_light_import", patient)

    def make(**faults: object):
        (tmp_path / "nets_plugin.py").write_text(FORMAT.format(**{**RIGHT, **faults}))
        sys.modules.pop("nets_plugin", None)
        return __import__("nets_plugin")

    yield make
    sys.modules.pop("nets_plugin", None)


def test_a_right_format_passes(plugin) -> None:
    check_file_format(plugin(), ".nets")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"foreign": "not isinstance(source, (str, Path))"}, "raises for the name of a network"),
        ({"foreign": "Path(source).suffix != '.nets'"}, "raises for a torch module"),
        (
            {"read": ".float()"},
            r"norm is not read .* \('1.num_batches_tracked': float32 in place of int64",
        ),
        ({"read": ".half()"}, r"\('0.bias': float16 in place of float32\)"),
        ({"read": "[None]"}, r"\('0.bias': \(1, 8\) in place of \(8,\)\)"),
        ({"read": " + 1"}, r"\('0.bias': other values\)"),
        (
            {
                "written": "v.numpy() for k, v in graph.state_dict().items() if v.ndim}) or dict(**{k: v"
            },
            r"\('1.num_batches_tracked' is missing\)",
        ),
        (
            {
                "checking": "",
                "written": "v.detach().view(__import__('torch').uint8).numpy()"
                " if v.element_size() == 2 else v.numpy()",
                "refused": ["torch.bfloat16", "torch.float16"],
            },
            "refuses a perceptron of halves.* sane_save writes it",
        ),
        ({"refused": []}, "does not save a perceptron of bfloat16 .*sane_check_save"),
        ({"refused": ["torch.float32"]}, "refuses a small CNN .*networks of float32"),
        ({"checking": ""}, "refuses a perceptron of bfloat16.* sane_save fails with TypeError"),
        (
            {
                "checking": "",
                "written": "(v.float() if v.dtype == __import__('torch').bfloat16 else v).numpy()",
            },
            "refuses a perceptron of bfloat16.* sane_save writes it",
        ),
        (
            {"writing": "import time; file.write(str(int(time.time())).encode())"},
            "writes other bytes",
        ),
        (
            {"writing": "import time; file.write(time.ctime(time.time()).encode())"},
            "writes other bytes",
        ),
        ({"writing": "import os; file.write(os.urandom(4))"}, "writes other bytes"),
        (
            {"writing": "file.write(''.join({*map(str, range(99))}).encode())"},
            "writes other bytes for the same network",
        ),
        ({"opening": "print('reading')"}, "'reading' to standard output"),
        ({"top": "import numpy"}, "imports numpy"),
        ({"top": "print('hello')"}, "'hello' when it is imported"),
        (
            {"saving": "(target.parent / (target.stem + '.tmp')).touch()"},
            "name it in sane_side_files",
        ),
        ({"top": "@hookimpl\ndef sane_opens(source): ..."}, "there is no hook sane_opens"),
        ({"opening": "return 3"}, "returned an int where a WeightGraph"),
    ],
)
def test_a_fault_of_a_format_is_found(plugin, fault: dict[str, object], said: str) -> None:
    with pytest.raises((ContractError, TypeError), match=said):
        check_file_format(plugin(**fault), ".nets")


READER = """
from pathlib import Path
from sane_plugins import hookimpl
@hookimpl
def sane_open(source):
    if not isinstance(source, (str, Path)) or Path(source).suffix != ".perceptron":
        return None
    import torch
    from dataclasses import replace
    from sane_plugins.formats import require_file
    from sane_plugins.weights import Layer, Param, WeightGraph
    require_file(Path(source))
    draw = torch.Generator().manual_seed(0)
    shapes = {{"a/k": (8, 6), "a/b": (8,), "c/k": (8, 8), "b/k": (4, 8), "b/b": (4,)}}
    tensors = {{key: torch.randn(*shape, generator=draw) for key, shape in shapes.items()}}
    def param(key, role="weight", /, **wrong):
        fields = {{"key": key, "role": role, "shape": shapes[key], "dtype": torch.float32, **wrong}}
        return Param(**fields)
    def layer(name, kind, /, *inputs, params=(), **wrong):
        return Layer(**{{"name": name, "kind": kind, "inputs": inputs, "params": params, **wrong}})
    matrix, bias = param("b/k", {param}), param("b/b", "bias")
    layers = (
        layer("in", "input"),
        layer("a", "linear", "in", params=(param("a/k"), param("a/b", "bias"))),
        layer("relu", "pointwise", "a"),
        layer("c", "linear", "relu", params=(param("c/k"),)),
        layer("b", "linear", "c", params=(matrix, bias), {layer}),
        layer("out", "output", "c"),
    )
    layers = {layers}
    tensors = {tensors}
    return WeightGraph(
        source=str(source), layers=layers, tensors=tensors, container="perceptron", {graph}
    )
"""
UNBIASED = """(
    *layers[:4], layer("b", "linear", "c", params=(param("b/k", axis=1), param("b/b", "other")))
)"""
LOOP = "(*layers[:-1], layer('out', 'output', 'b'))"
READS_RIGHT = {"param": "", "layer": "", "layers": "layers", "tensors": "tensors", "graph": ""}
LAZY = """type("Lazy", (__import__("collections").UserDict,), {})"""


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """Return a function that writes and imports a plugin that reads .perceptron files."""
    monkeypatch.syspath_prepend(str(tmp_path))
    # Its import is tried with the other plugins: a process for each fault takes long.
    monkeypatch.setattr("sane_plugins.testing.file_formats.check_light_import", lambda _: None)

    def make(**faults: str):
        (tmp_path / "reading_plugin.py").write_text(READER.format(**{**READS_RIGHT, **faults}))
        sys.modules.pop("reading_plugin", None)
        return __import__("reading_plugin")

    yield make
    sys.modules.pop("reading_plugin", None)


def _flattened(**fields: object) -> dict[str, str]:
    """Return the layers of a convolution, a flatten and a matrix, with other fields of the flatten."""
    given = "".join(f", {key}={value!r}" for key, value in fields.items())
    return {"layers": f'(*layers[:-1], layer("flat", "flatten", "b"{given}))'}


def _convolution(**fields: object) -> dict[str, str]:
    """Return a depthwise convolution that reads another, with other fields of it."""
    given = "".join(f", {key}={value!r}" for key, value in fields.items())
    return {
        "tensors": "{'k': torch.ones(8, 3, 3, 3), 'd': torch.ones(8, 1, 3, 3)}",
        "layers": (
            "(layers[0], layer('k', 'conv', 'in', params=(param('a/k', key='k', shape=(8, 3, 3, 3)),)),"
            " layer('d', 'conv', 'k', params=(param('a/k', key='d', shape=(8, 1, 3, 3)),)"
            f"{given}))"
        ),
    }


def _normed(size: int) -> dict[str, str]:
    """Return layers with a norm of so many values behind a matrix of 8 outputs."""
    return {
        "tensors": f"{{**tensors, 'n': torch.ones({size})}}",
        "layers": (
            "(*layers, layer('n', 'norm', 'c', params=(param('a/b', 'scale', key='n',"
            f" shape=({size},)),)))"
        ),
    }


@pytest.mark.parametrize(
    "right",
    [
        {},
        {"tensors": f"{LAZY}(tensors)"},
        {"tensors": "{**tensors, 'n': torch.ones(2)}", "graph": "untouched={'n': 'a counter'}"},
        {"tensors": "{**tensors, 'n': tensors['c/k']}", "graph": "ties={'n': 'c/k'}"},
        _flattened(dims=(1,)),
        _convolution(groups=8),
        _normed(8),
    ],
)
def test_a_right_reader_passes(reader, tmp_path, right: dict[str, str]) -> None:
    (file := tmp_path / "a.perceptron").write_bytes(b"of ours")
    check_file_format(reader(**right), ".perceptron", files=[file])


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"layer": "kind='dense'"}, "layer 'b': its kind is 'dense', and one of conv, "),
        ({"param": "'kernel'"}, "'b/k': its role is 'kernel', and one of weight, "),
        ({"param": "axis=2"}, r"'b/k': its axis is 2 and its shape \(4, 8\)"),
        ({"param": "axis=-1"}, "'b/k': its axis is -1"),
        ({"param": "axis=1"}, r"'b/k' \(4, 8\) gives 8 channels along axis 1, and 'b/b' has"),
        ({"layers": UNBIASED}, "'b/k' .* reads 4 channels"),
        ({"layer": "inputs=('nowhere',)"}, "layer 'b': it reads 'nowhere', and no layer has"),
        ({"layer": "inputs='c'"}, "layer 'b': its inputs are 'c', and a tuple"),
        ({"layer": "inputs=('b',)"}, "layer 'b': it reads its own output"),
        ({"layer": "inputs=('c', 'out')", "layers": LOOP}, "it reads its own output"),
        ({"param": "shape=(6, 8)"}, r"'b/k': its param says the shape \(6, 8\), and \(4, 8\)"),
        ({"param": "shape=[4, 8]"}, r"its shape is \[4, 8\], and a tuple"),
        ({"param": "key='nokey'"}, "layer 'b': `tensors` has no 'nokey'"),
        ({"param": "dtype=torch.float16"}, "'b/k': its param says float16, and float32"),
        ({"param": "dtype=torch.int64"}, "its dtype is int64, and a floating-point type"),
        ({"param": "dtype='float32'"}, "its dtype is float32, and a floating-point type of torch"),
        ({"layer": "name='a'"}, "layer 'a': two layers have this name"),
        ({"tensors": "{**tensors, 'lone': torch.ones(3)}"}, "tensor 'lone': no layer owns it"),
        ({"tensors": "{k: x.numpy() for k, x in tensors.items()}"}, "it is a numpy.ndarray"),
        ({"tensors": f"{LAZY}({{k: x.numpy() for k, x in tensors.items()}})"}, "it is a numpy.ndarray"),
        ({"tensors": f"{LAZY}({{k: x.half() for k, x in tensors.items()}})"}, "says float32, and float16"),
        ({"tensors": "{k: x.to_sparse() for k, x in tensors.items()}"}, "sparse or quantised"),
        ({"tensors": "[*tensors.values()]"}, "`tensors`: it is a list"),
        ({"layers": "[*layers]"}, "`layers`: it is a list, and a tuple"),
        ({"graph": "ties={'c/k': 'b/k'}"}, "'c/k': a layer owns it and it is a tie"),
        ({"graph": "ties={'z': 'nokey'}"}, "tie 'z': it stands for 'nokey', which is no tensor"),
        ({"graph": "untouched={'c/k': 'a table'}"}, "'c/k': a layer owns it and it is untouched"),
        ({"graph": "untouched=['z']"}, "`untouched`: it is a list"),
        ({"graph": "missed={'z': 'many'}"}, "`missed`: it maps 'z' to 'many'"),
        ({"graph": "converted={'z': 'dequantised'}"}, "`converted`, 'z': no layer owns it"),
        (_flattened(), r"layer 'flat': the dims of this flatten are \(\), and the first axis"),
        (_flattened(kind="concat"), "the concatenated axis, is needed"),
        (_flattened(kind="transpose", dims=(1,)), "the two exchanged axes"),
        (_flattened(kind="permute", dims=(0, 0, 1)), "each axis once"),
        (_flattened(kind="squeeze"), "the axes that it changes"),
        (_flattened(dims=(99,)), "axes below 32"),
        (_flattened(dims=("x",)), "a tuple of axes"),
        (_flattened(dims=(1,), groups=2), "its groups are 2 and its kind is flatten"),
        (_normed(5), r"layer 'n': 'n' has the shape \(5,\), and layer 'c' gives 8 channels"),
        ({"layer": "kind='conv'"}, "the weight of this conv needs 3 axes or more"),
        (_convolution(kind="linear"), "layer 'd'.* two axes are needed for the weight of this linear"),
        (_convolution(), "'d' .* with axis 0 and groups 1 reads 1 channels, and layer 'k' gives 8"),
        (_convolution(groups=3), "its groups are 3 and 'd' has the shape"),
        (_convolution(groups=0), "its groups are 0, and a whole number"),
    ],
)  # fmt: skip
def test_a_wrong_graph_of_a_reader_is_found(reader, tmp_path, fault, said: str) -> None:
    """The kit names the plugin, the layer or tensor, what was found, and what is needed."""
    (file := tmp_path / "a.perceptron").write_bytes(b"of ours")
    with pytest.raises(
        ContractError, match=f"plugin reading_plugin, sane_open: its graph .*{said}"
    ):
        check_file_format(reader(**fault), ".perceptron", files=[file])


@pytest.mark.parametrize(
    "fault", [{"layer": "kind='dense'"}, {"param": "key='nokey'"}, _flattened()]
)
def test_a_host_blames_the_plugin_whose_graph_is_wrong(reader, tmp_path, fault) -> None:
    (file := tmp_path / "a.perceptron").write_bytes(b"of ours")
    host = host_with(reader(**fault))
    with pytest.raises(PluginError, match="plugin reading_plugin: its graph is wrong: layer '"):
        host.encode(file)
    assert [x.plugin for x in host.problems] == ["reading_plugin"]


KEPT = """
import json
from pathlib import Path
from sane_plugins import hookimpl
def _ours(source):
    return isinstance(source, (str, Path)) and Path(source).suffix == ".kept"
@hookimpl
def sane_open(source):
    if not _ours(source):
        return None
    import torch
    from sane_plugins.weights import Layer, Param, WeightGraph
    file = torch.load(source, weights_only=True)
    tensors = file["tensors"]
    def param(key, role, axis):
        tensor = tensors[key]
        return Param(key=key, role=role, shape=tuple(tensor.shape), dtype=tensor.dtype, axis=axis)
    layers = tuple(
        Layer(name=x["name"], params=tuple(param(*p) for p in x["params"]), {fields})
        for x in file["layers"]
    )
    return WeightGraph(source=str(source), layers=layers, tensors=tensors, container="kept",
                       untouched=file["untouched"], ties=file["ties"])
@hookimpl
def sane_save(graph, target):
    if not _ours(target):
        return None
    import torch
    from sane_plugins.atomic_files import write_whole
    layers = [
        dict(name=x.name, params=[(p.key, p.role, p.axis) for p in x.params], kind=x.kind,
             inputs=x.inputs, groups=x.groups, dims=x.dims)
        for x in graph.layers
    ]
    state = dict(tensors=dict(graph.tensors), layers=layers, ties=dict(graph.ties),
                 untouched=dict(graph.untouched))
    return write_whole(target, lambda partial: torch.save(state, partial))
"""
FIELDS = {name: f"{name}=x[{name!r}]" for name in ("kind", "inputs", "groups", "dims")}


@pytest.fixture
def keeper(tmp_path, monkeypatch):
    """Return a function that writes and imports a plugin that keeps the layers of a graph."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(**faults: str):
        fields = ", ".join(filter(None, {**FIELDS, **faults}.values()))
        (tmp_path / "keeping_plugin.py").write_text(KEPT.format(fields=fields))
        sys.modules.pop("keeping_plugin", None)
        return __import__("keeping_plugin")

    yield make
    sys.modules.pop("keeping_plugin", None)


def test_a_form_that_keeps_layers_passes(keeper) -> None:
    check_file_format(keeper(), ".kept")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"inputs": ""}, "('%output': 'inputs': () in place of ('14',))"),
        ({"groups": ""}, "'2.weight' (8, 2, 3, 3) with axis 0 and groups 1 reads 2 channels"),
        (
            {"groups": "groups=x['groups'] if x['kind'] == 'conv' else 1"},  # its channels fit
            "CNN of groups are not read as they were written ('3': 'groups': 1 in place of 2)",
        ),
        ({"dims": "dims=tuple(-1 for _ in x['dims'])"}, "'dims': (-1, -1) in place of (-2, -1)"),
        ({"kind": "kind=x['kind'].replace('norm', 'pointwise')"}, "'pointwise' in place of 'norm'"),
    ],
)
def test_layers_that_are_not_kept_are_found(keeper, fault: dict[str, str], said: str) -> None:
    with pytest.raises(ContractError, match="keeping_plugin") as caught:
        check_file_format(keeper(**fault), ".kept")
    assert said in str(caught.value)


def test_a_reader_needs_files(plugin) -> None:
    class Reader:
        @hookimpl
        def sane_open(self, source):
            return plugin().sane_open(source)

    with pytest.raises(ContractError, match="give check_file_format some files"):
        check_file_format(Reader(), ".nets")


@pytest.mark.parametrize("sampler", [KDE(), Gaussian()])
def test_our_samplers_pass(sampler) -> None:
    check_sampler(sampler)


def _global(prompts, count, _):
    return torch.randn(count, *prompts.shape[1:])


def _unseeded(prompts, count, _):
    return torch.full((count, *prompts.shape[1:]), random.random())


def _constant(prompts, count, _):
    return prompts[:1].expand(count, -1, -1).clone()


def _changing(prompts, count, rng):
    return prompts.add_(1)[:1].expand(count, -1, -1) + torch.rand((), generator=rng)


def _loud(prompts, count, rng):
    print("drawing")
    return Gaussian()(prompts, count, rng)


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        (_global, "the same seed draws other latents"),
        (_unseeded, "the same seed draws other latents"),
        (_constant, "every seed draws the same latents"),
        (_changing, "changes its prompts|other latents"),
        (_loud, "prints 'drawing"),
    ],
)
def test_a_fault_of_a_sampler_is_found(sampler, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        check_sampler(sampler)


class Norms:
    """The norm of the first 4 tensors."""

    name = "norms"

    def encode(self, graph, options):
        numbers = self.features(graph, options)
        return Encoding(
            latents=None,
            spans=[],
            embedding=numbers,
            layers=torch.zeros(0, 4),
            names=(),
            encoder=self.name,
        )

    def features(self, graph, options):
        norms = [float(tensor.double().norm()) for _, tensor in graph.items()]
        assert options.device == "cpu"
        return torch.tensor((norms + 4 * [0.0])[:4])


class RandomNorms(Norms):
    def features(self, graph, options):
        return super().features(graph, options) + torch.rand(4)


class ManyNorms(Norms):
    def features(self, graph, _):
        return torch.tensor([float(tensor.double().norm()) for _, tensor in graph.items()])


class InfiniteNorms(Norms):
    def features(self, graph, options):
        return super().features(graph, options) / 0


class ChangingNorms(Norms):
    def features(self, graph, options):
        for _, tensor in graph.items():
            tensor.mul_(2)
        return super().features(graph, options)


@pytest.mark.parametrize("encoder", [Norms(), ENCODERS["statistics"]])
def test_right_encoders_pass(encoder) -> None:
    check_encoder(encoder)


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        (RandomNorms(), "encoded otherwise"),
        (ManyNorms(), "different lengths"),
        (InfiniteNorms(), "not finite"),
        (ChangingNorms(), "otherwise again|changes the weights"),
    ],
)
def test_a_fault_of_an_encoder_is_found(encoder, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        check_encoder(encoder)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return write_tiny_zoo(tmp_path_factory.mktemp("zoo") / "tiny")


@pytest.fixture(scope="module")
def fitted(zoo):
    entries = zoo.entries
    samples = extract_features(
        (zoo.graph(x) for x in entries), [x.network for x in entries], {"norms": Norms()}
    )
    targets = np.array([x.properties["scale"] for x in entries])
    return fit_head("scale", samples, targets, bounds=(0.0, 10.0))


def test_a_head_reads_the_features_of_a_plugins_encoder(fitted, zoo, tmp_path) -> None:
    """It is fitted, kept in a file, offered by a plugin, and right about networks that it has not seen."""
    assert (fitted.features, fitted.encoders, fitted.sane) == ("norms", ("norms",), "")
    save_heads({"scale": fitted}, tmp_path / "heads.safetensors")
    (head,) = load_heads(tmp_path / "heads.safetensors").values()
    check_head(head, {"norms": Norms()})

    class Offering:
        @hookimpl
        def sane_encoders(self):
            return {"norms": Norms()}

        @hookimpl
        def sane_property_heads(self):
            return {"scale": head}

    host, graph = Host.installed(), zoo.graph(zoo.entries[5])
    assert "scale" not in host.predict(graph)
    host.register(Offering(), "offering")
    estimate = host.predict(graph)["scale"]
    low, high = (host.predict(zoo.graph(zoo.entries[i]))["scale"].value for i in (1, -2))
    assert low < estimate.value < high
    assert estimate.in_distribution
    assert not host.problems
    host.pm.unregister(name="offering")

    class Headed:
        @hookimpl
        def sane_property_heads(self):
            return {"scale": head}

    host.register(Headed(), "headed")
    assert "gap" in host.predict(graph)  # the other heads remain
    assert ["the encoder 'norms'" in x.error for x in host.problems] == [True]


class Guess:
    """A head that is made by hand."""

    features, sane, score, scores, encoders = "norms", "", "R^2", {}, ("norms",)

    def __init__(self, value=None, low=0.0) -> None:
        self.value, self.low = value, low

    def estimate(self, features):
        value = float(features["norms"][0]) if self.value is None else self.value()
        return Estimate(
            property="guess",
            value=value,
            unit="",
            interval=(self.low, 1e9),
            coverage=0.9,
            in_distribution=True,
            features="norms",
        )


def test_heads_keep_their_contract_or_not() -> None:
    encoders = {"norms": Norms()}
    check_head(Guess(), encoders)
    check_head(embedded_heads()["gap"])
    for head, said in (
        (Guess(random.random), "estimated otherwise"),
        (Guess(low=1e10), "ends before it begins"),
        (Guess(lambda: float("nan")), "finite|no number"),
    ):
        with pytest.raises((ContractError, Exception), match=said):
            check_head(head, encoders)


def _outcomes(start, tasks, _workers):
    work = start()
    for i, task in enumerate(tasks):
        try:
            yield Done(i, work(task))
        except MemoryError:
            yield Lost(i, out_of_memory=True)


def _forgetful(start, tasks, workers):
    return [*_outcomes(start, tasks, workers)][1:]


def _bare(start, tasks, _workers):
    return map(start(), tasks)


def _careless(start, tasks, workers):
    try:
        yield from _outcomes(start, tasks, workers)
    except LookupError:
        return


def _unaware(start, tasks, _workers):
    work = start()
    return [Done(i, work(task)) for i, task in enumerate(tasks)]


def test_engines_answer_for_each_task() -> None:
    check_engine(_outcomes)
    for engine, said in (
        (_forgetful, "for each task"),
        (_bare, "it answers int"),
        (_careless, "error of the work is lost"),
        (_unaware, "MemoryError ends the run"),
    ):
        with pytest.raises(ContractError, match=said):
            check_engine(engine)


def test_the_tiny_zoo_is_the_same_in_every_run(zoo, tmp_path) -> None:
    again = write_tiny_zoo(tmp_path / "again")
    for one, other in zip(zoo.entries, again.entries, strict=True):
        assert one.properties == other.properties
        theirs = again.state_dict(other)
        assert all(torch.equal(x, theirs[key]) for key, x in zoo.state_dict(one).items())


def test_a_heavy_import_is_named_without_importing_it_here() -> None:
    check_light_import("sane_plugins.testing.pytest_plugin")
    with pytest.raises(ContractError, match="imports torch"):
        check_light_import("sane_plugins.features.encoders")
    with pytest.raises(ContractError, match="does not import"):
        check_light_import("no_such_module_of_anyone")


def test_a_slow_import_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    # It computes: on a busy machine, Linux may count a part of sleep as waiting for a processor.
    slow = (
        "import time\nstarted = time.process_time()\nwhile time.process_time() < started + 0.3: ..."
    )
    (tmp_path / "slow_plugin.py").write_text(slow)
    check_light_import("slow_plugin", seconds=600)
    with pytest.raises(
        ContractError, match=r"slow_plugin takes \d+\.\d s to import, and at most 0.2 s"
    ):
        check_light_import("slow_plugin", seconds=0.2)


FIXTURES = """
def test_both(sane_host, tiny_zoo):
    assert "gap" in sane_host.predict(tiny_zoo.graph(tiny_zoo.entries[0]))
    assert not sane_host.problems
"""
QUIET = """
import sys
def test_nothing_is_loaded():
    assert not {"torch", "numpy", "sane_plugins.host"} & set(sys.modules)
"""


def _kit() -> tuple[str, ...]:
    """Return the option that loads the fixtures, where what is installed does not do so itself."""
    points = entry_points(group="pytest11", name="sane")
    return () if points else ("-p", "sane_plugins.testing.pytest_plugin")


@pytest.mark.parametrize("code", [FIXTURES, QUIET])
def test_the_fixtures_load_in_anybodys_pytest_and_nothing_else(pytester, code: str) -> None:
    pytester.makepyfile(code)
    done = pytester.runpytest_subprocess(*_kit(), "-W", "error", "-p", "no:cacheprovider")
    done.assert_outcomes(passed=1)
    assert "warning" not in done.stdout.str()


IMPORTED_BEFORE = """
import sys, pytest, sane_plugins
for point in __import__("importlib.metadata").metadata.entry_points(group="sane_plugins"):
    if point.dist.name == "sane-plugins":
        __import__(point.value)
sys.exit(pytest.main(["-q", "-W", "error", "-p", "no:cacheprovider"]))
"""


def test_pytest_does_not_warn_of_a_program_that_imported_us_before(pytester) -> None:
    """pytest rewrites the packages of whoever brings it fixtures, and warns where it comes too late."""
    pytester.makepyfile("def test_nothing(): ...")
    done = pytester.runpython_c(IMPORTED_BEFORE)
    assert done.ret == 0, done.stderr.str() + done.stdout.str()
