"""The Python face: what a program sees, prints, compares, pickles, and hears of a wrong type."""

import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import sane_plugins
from sane_plugins import (
    EncodeOptions,
    Host,
    Initialization,
    InitializeOptions,
    PredictOptions,
    SourceError,
    TrainOptions,
    UsageError,
)
from sane_plugins.architectures import small_cnn
from sane_plugins.pretraining import PretrainOptions
from sane_plugins.zoo import Entry, write_zoo

TASK = sane_plugins.load_task("digits")
FORMS = ("net.safetensors", "net.safetensors.index.json", "net.npz", "net.pt")


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.installed()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


@pytest.fixture(scope="module")
def results(host, network, tmp_path_factory) -> dict[str, object]:
    state = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    entries = [
        (Entry(network=f"n{i}", checkpoint="1", factory={}, properties={"x": i}), state)
        for i in (0, 1)
    ]
    found = {
        "graph": host.open(network),
        "encoding": host.encode(network),
        "statistics": host.encode(network, EncodeOptions(encoder="statistics")),
        "zoo": write_zoo(tmp_path_factory.mktemp("zoo") / "z", "z", entries),
        "task": sane_plugins.load_task("digits"),
        "options": PredictOptions(),
    }
    found |= {f"estimate {k}": v for k, v in host.predict(network).items()}
    found |= {f"head {k}": v for k, v in host.property_heads().items()}
    return found


def test_the_face_shows_what_a_program_needs() -> None:
    code = (
        "import sys, sane_plugins; names = dir(sane_plugins)\n"
        "assert not {'torch', 'numpy', 'sklearn'} & set(sys.modules)\n"
        "print(*names)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    needed = {
        "Host",
        "attach",
        "load_task",
        "Zoo",
        "open",
        "EncodeOptions",
        "InitializeOptions",
        "SaneError",
    }
    assert needed <= set(done.stdout.split())
    assert all(hasattr(sane_plugins, name) for name in sane_plugins.__all__)


def test_open_reads_what_the_installed_plugins_read(network) -> None:
    assert sane_plugins.open(network).size == sum(p.numel() for p in network.parameters())


def test_reprs_are_short(results, host) -> None:
    for name, value in {**results, "host": host}.items():
        assert len(repr(value)) < 300, name
    assert len(repr(host.property_heads())) < 3000


def test_results_can_be_compared_and_hashed(results) -> None:
    for value in results.values():
        assert value == value
        assert value != "another"
        assert isinstance(hash(value), int)


def test_results_can_be_pickled(results) -> None:
    for value in results.values():
        assert type(pickle.loads(pickle.dumps(value))) is type(value)


@pytest.mark.parametrize("form", FORMS)
def test_a_lazy_graph_reads_the_same_in_another_process(host, network, tmp_path, form) -> None:
    graph = host.open(host.save(host.open(network), tmp_path / form))
    again = pickle.loads(pickle.dumps(graph))
    assert all(torch.equal(again.tensors[p.key], t) for p, t in graph.items())


@pytest.mark.parametrize("form", FORMS[:3])
def test_a_graph_of_a_file_that_changed_is_refused(host, network, tmp_path, form) -> None:
    graph = host.open(host.save(host.open(network), tmp_path / form))
    dumped = pickle.dumps(graph)
    host.save(host.open(nn.Linear(3, 2)), tmp_path / form, force=True)
    with pytest.raises(SourceError, match="not the file that was opened"):
        pickle.loads(dumped)


def test_a_host_says_why_it_is_not_pickled(host) -> None:
    with pytest.raises(TypeError, match=r"one process.*Host\.installed\(\)"):
        pickle.dumps(host)


@pytest.fixture(scope="module")
def initialized(host) -> Initialization:
    task, options = (
        sane_plugins.load_task("digits"),
        InitializeOptions(candidates=1, keep=1, images=64),
    )
    return host.initialize(partial(small_cnn, 1, 10), task.resized(28), (), options)


def test_an_initialization_is_told_in_short_and_as_a_table(initialized) -> None:
    assert len(repr(initialized)) < 500
    page = initialized._repr_html_()
    assert page.count("<tr>") == 1 + min(len(initialized.rows), 40)
    assert page.count("<td>chosen</td>") == 1
    assert initialized == initialized
    assert isinstance(hash(initialized), int)
    assert pickle.loads(pickle.dumps(initialized)).chosen == initialized.chosen


@pytest.mark.parametrize(
    ("call", "argument", "needed"),
    [
        (lambda h, n: h.encode(n, {"encoder": "sane"}), "encode, options", "EncodeOptions"),
        (lambda h, n: h.encode(n, PredictOptions()), "encode, options", "EncodeOptions"),
        (lambda h, n: h.predict(n, EncodeOptions()), "predict, options", "PredictOptions"),
        (lambda h, n: h.initialize(n, "digits"), "initialize, task", r"load_task\(\)"),
        (lambda h, n: h.initialize(n, TASK, "a.pt"), "initialize, prompts", "list"),
        (lambda h, _: h.initialize("small-cnn", TASK), "initialize, target", "Module"),
        (
            lambda h, n: h.initialize(n, TASK, (), EncodeOptions()),
            "initialize, options",
            "InitializeOptions",
        ),
        (lambda h, n: h.save(n, "x.pt"), "save, graph", "WeightGraph"),
        (lambda h, n: h.save(h.open(n), 3), "save, target", "Path"),
        (lambda *_: sane_plugins.load_task(3), "load_task, source", "str"),
        (lambda *_: sane_plugins.Zoo.open(3), "Zoo.open, folder", "Path"),
    ],
)
def test_an_argument_of_a_wrong_type_is_named(
    host, network, call, argument: str, needed: str
) -> None:
    before = len(host.problems)
    with pytest.raises(TypeError, match=f"^{argument}: .*{needed}") as caught:
        call(host, network)
    assert isinstance(caught.value, UsageError)
    assert len(host.problems) == before  # nobody's plugin is to blame


@pytest.mark.parametrize("name", ["encoding", "zoo"])
def test_notebooks_get_a_table(results, name) -> None:
    page = results[name]._repr_html_()
    assert page.count("<tr>") == 3
    assert "<script" not in page


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: EncodeOptions(window="64"), "EncodeOptions, window"),
        (lambda: EncodeOptions(precision="float16"), "EncodeOptions, precision"),
        (lambda: EncodeOptions(device=torch.device("cpu")), "EncodeOptions, device"),
        (lambda: PredictOptions(properties="test_accuracy"), "PredictOptions, properties"),
        (lambda: PredictOptions(heads=3), "PredictOptions, heads"),
        (lambda: TrainOptions(lr="0.1"), "TrainOptions, lr"),
        (lambda: TrainOptions(batch=True), "TrainOptions, batch"),
        (lambda: PretrainOptions(steps=1.5), "PretrainOptions, steps"),
        (lambda: InitializeOptions(candidates="4"), "InitializeOptions, candidates"),
        (lambda: InitializeOptions(search="random"), "InitializeOptions, search"),
        (lambda: InitializeOptions(include="conv*"), "InitializeOptions, include"),
    ],
)
def test_an_option_of_a_wrong_type_is_named(make, argument: str) -> None:
    with pytest.raises(TypeError) as caught:
        make()
    assert isinstance(caught.value, UsageError)
    assert str(caught.value).startswith(f"{argument}: ")
    assert " is needed" in str(caught.value)


def test_what_is_as_good_as_the_annotated_type_is_taken(tmp_path) -> None:
    numpy = pytest.importorskip("numpy")
    EncodeOptions(window=numpy.int64(8), sane=str(tmp_path), latents=Path("x"))
    PredictOptions(properties=["test_accuracy"])
    TrainOptions(lr=1)
