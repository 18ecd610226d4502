"""The contract kit: what is right passes, and every planted fault is found and named."""

import random
import sys
from importlib.metadata import entry_points

import numpy as np
import pytest
import torch

from sane_plugins import Encoding, Estimate, Host, hookimpl
from sane_plugins.engines import Done, Lost
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
def sane_save(graph, target):
    if target.suffix != ".nets":
        return None
    import numpy as np
    from sane_plugins.atomic_files import write_whole
    def write(partial):
        with partial.open("wb") as file:
            np.savez(file, **{{k: v.numpy() for k, v in graph.state_dict().items()}})
    {saving}
    return write_whole(target, write)
"""
RIGHT = {
    "top": "",
    "foreign": 'not isinstance(source, (str, Path)) or Path(source).suffix != ".nets"',
    "opening": "",
    "read": "",
    "saving": "",
}


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Return a function that writes and imports a plugin that reads and writes .nets files."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(**faults: str):
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
        ({"read": ".float()"}, "not read as it was written"),
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
def test_a_fault_of_a_format_is_found(plugin, fault: dict[str, str], said: str) -> None:
    with pytest.raises((ContractError, TypeError), match=said):
        check_file_format(plugin(**fault), ".nets")


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
