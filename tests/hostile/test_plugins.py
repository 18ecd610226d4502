"""Plugins of others: each broken one is named once with its reason, and all else works."""

import gc
import json
import re
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pluggy
import pytest
import torch
from click.testing import CliRunner
from hostile.bounded import run, run_python
from hostile.broken_plugins import AT_CALL, AT_IMPORT, NOTED, install_plugin
from safetensors.torch import load_file
from torch import nn

from sane_plugins import attach, hookimpl
from sane_plugins.cli.main import main as command
from sane_plugins.cost import NetworkCost
from sane_plugins.errors import PluginError, SaneError, SourceError, UsageError
from sane_plugins.features import ENCODERS, EncodeOptions, Encoding
from sane_plugins.generation import KDE
from sane_plugins.host import Host
from sane_plugins.initialize import InitializeOptions
from sane_plugins.plugins import SLOW_SECONDS
from sane_plugins.progress import Progress
from sane_plugins.properties import CategoryEstimate, Estimate, PredictOptions, embedded_heads
from sane_plugins.tasks import load_task

BROKEN = {**AT_IMPORT, **AT_CALL}
NETWORK = nn.Linear(2, 2)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a plugin for the time of a test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def add(name: str, code: str, **more) -> None:
        install_plugin(tmp_path, name, code, **more)

    yield add
    for path in tmp_path.glob("*.py"):
        if path.stem not in before:
            sys.modules.pop(path.stem, None)


@pytest.fixture
def host():
    return Host.installed()


def _use(host) -> None:
    assert host.open(NETWORK).size == 6
    assert "kde" in host.samplers()
    assert "local" in host.engines()
    assert {"sane", "statistics"} <= set(host.encoders())
    assert set(host.property_heads()) >= set(embedded_heads())
    host.prompts()
    host.published_networks()
    host.commands(taken=["list"])
    host.report(Progress(job="job", done=0, total=1))


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_named_once_and_the_others_work(install, name: str) -> None:
    code, reason = BROKEN[name]
    install(name, code)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as: coroutine was never awaited
        host = Host.installed()
        for _ in range(3):
            _use(host)
        gc.collect()
    places = {(x.plugin, x.place) for x in host.problems}
    assert len(places) == len(host.problems)
    assert {plugin for plugin, _ in places} == {name}
    assert any(reason in x.error for x in host.problems), host.problems
    assert all("\n" not in x.error and len(x.error) < 600 for x in host.problems)


@pytest.mark.parametrize("name", NOTED)
def test_a_mistake_that_breaks_nothing_is_noted(install, name: str) -> None:
    code, reason = NOTED[name]
    install(name, code)
    host = Host.installed()
    assert not host.problems
    assert [x.plugin for x in host.notes] == [name]
    assert reason in host.notes[0].text


def test_good_plugins_are_not_noted(host) -> None:
    _use(host)
    assert not host.problems
    assert not host.notes


def test_plugins_work_together_with_every_broken_one(install) -> None:
    for name, (code, _) in {**BROKEN, **NOTED}.items():
        install(name, code)
    host, pm = Host.installed(), pluggy.PluginManager("host")
    attached = attach(pm)
    for _ in range(2):
        _use(host)
        _use(attached.host)
    for _ in range(2):  # and the program's own calls
        assert pm.hook.sane_open(source=NETWORK).size == 6
        assert "kde" in set().union(*pm.hook.sane_samplers())
        pm.hook.sane_progress(event=Progress(job="job", done=0, total=1))
    for problems in (host.problems, attached.problems):
        assert {x.plugin for x in problems} == set(BROKEN)
    assert host.predict(NETWORK).keys() == embedded_heads().keys()


@pytest.fixture(scope="module")
def ten(tmp_path_factory) -> str:
    """Return a folder for the path with ten broken plugins, and more."""
    folder = tmp_path_factory.mktemp("ten")
    for name, (code, _) in {**BROKEN, **NOTED}.items():
        install_plugin(folder, name, code)
    return str(folder)


def _with_path(folder: str) -> dict[str, str]:
    return {"PYTHONPATH": ":".join([folder, *sys.path[1:]])}


def _told(stderr: str) -> list[str]:
    return [line.split()[2].strip(":") for line in stderr.splitlines() if "Note: plugin " in line]


def test_list_names_each_of_many_broken_plugins_once(ten) -> None:
    done = run("list", "--json", **_with_path(ten)).require_small()
    assert done.code == 0, done.stderr
    page = json.loads(done.stdout)
    named = {row["plugin"] for row in page["problems"]}
    assert named | {row["plugin"] for row in page["notes"]} == set(_told(done.stderr))
    assert len(_told(done.stderr)) == len(set(_told(done.stderr)))
    # What is called when a network is read is not called by `list`.
    for name in named:
        assert any(BROKEN[name][1] in x["error"] for x in page["problems"] if x["plugin"] == name)
    assert set(AT_IMPORT) <= named
    assert {"taker_of_names", "no_head", "names_no_texts", "our_command"} <= named
    assert "at import" in done.stderr and "raw" in done.stderr  # moved, not lost
    table = run("list", **_with_path(ten))
    assert table.code == 0
    assert all(name in table.stdout for name in named | set(NOTED))


def test_predict_and_init_work_among_many_broken_plugins(ten, tmp_path) -> None:
    done = run("predict", "small-cnn", "--json", **_with_path(ten)).require_small()
    assert done.code == 0, done.stderr
    assert set(json.loads(done.stdout)["small-cnn"]) == set(embedded_heads())
    for name in {*AT_IMPORT, "raising_open", "printing", "old_wrapper", "no_head"}:
        assert _told(done.stderr).count(name) == 1
        assert BROKEN[name][1] in done.stderr
    arguments = ["--task", "digits", "--samples", "2", "--keep", "1", "--budget", "5", "--json"]
    code = "import sys; from sane_plugins.cli.initialize import main; main()"
    file = tmp_path / "digits.safetensors"
    made = run_python("-c", code, *arguments, "-o", file, **_with_path(ten))
    assert made.code == 0, made.stderr
    assert json.loads(made.stdout)["output"] == str(file)
    assert len(_told(made.stderr)) == len(set(_told(made.stderr)))
    assert {*AT_IMPORT, "taker_of_names", "raising_observer"} <= set(_told(made.stderr))


def test_print_of_a_plugin_is_kept_apart_from_the_result(install, capfd) -> None:
    install("printing", AT_CALL["printing"][0])
    done = CliRunner().invoke(command, ["list", "--json"])
    json.loads(done.stdout)
    assert "at import" in done.stderr
    assert sys.stdout is not sys.stderr
    print("mine again")
    assert "mine again" in capfd.readouterr().out


def test_a_plugins_command_that_raises_is_named(install) -> None:
    install(
        "raising_command",
        """
        import click
        @click.command()
        def talk(): raise KeyError("oops")
        @hookimpl
        def sane_commands(): return [talk, click.Command("odd", params=["x"])]
        """,
    )
    for name, reason in {"talk": "KeyError: 'oops'", "odd": "AttributeError"}.items():
        done = CliRunner().invoke(command, [name])
        assert done.exit_code == 1
        assert f"command '{name}' of a plugin: it raised {reason}" in done.stderr


def test_a_plugin_that_closes_standard_output_closes_nothing(install) -> None:
    install("closing", "import sys\nsys.stdout.close()\nprint('still')\n1 / 0")
    done = CliRunner().invoke(command, ["list", "--json"])
    assert json.loads(done.stdout)["problems"]
    assert "still" in done.stderr
    assert "Note: plugin closing" in done.stderr


def test_numbers_of_numpy_are_numbers_in_json(install) -> None:
    install(
        "numpy_head",
        """
        from types import MappingProxyType
        import numpy as np
        from sane_plugins.properties import CategoryEstimate, Estimate
        class Head:
            features, sane, score, scores, encoders = "f", "", "s", {}, ("statistics",)
            def __init__(self, *estimate): self.fields = estimate
            def estimate(self, features):
                kind, fields = self.fields
                return kind(property="p", coverage=0.9, features="f", **fields)
        @hookimpl
        def sane_property_heads():
            number = {"value": np.float32(0.5), "unit": "", "interval": (np.float32(0), np.int64(1))}
            shares = MappingProxyType({"a": np.float32(1)})
            kind = {"value": "a", "probabilities": shares, "set": ("a",)}
            return {
                "number": Head(Estimate, {**number, "in_distribution": np.bool_(True)}),
                "kind": Head(CategoryEstimate, {**kind, "in_distribution": np.bool_(False)}),
            }
        """,
    )
    names = ["--property", "number", "--property", "kind", "--force"]
    done = CliRunner().invoke(command, ["predict", "small-cnn", "--json", *names])
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)["small-cnn"]
    assert answer["number"]["value"] == 0.5
    assert answer["number"]["interval"] == [0, 1]
    assert answer["number"]["in_distribution"] is True
    assert answer["kind"]["probabilities"] == {"a": 1}
    assert answer["kind"]["in_distribution"] is False


@pytest.mark.parametrize("spans", [[], [(0, 4)]])
def test_encodings_without_latents_are_written_without(install, tmp_path, spans) -> None:
    install(
        "keeps_none",
        f"""
        import torch
        from sane_plugins.features import Encoding
        class Encoder:
            name = "mine"
            def encode(self, graph, options):
                return Encoding(latents=None, spans={spans}, embedding=torch.zeros(3),
                                layers=torch.zeros(1, 3), names=("w",), encoder="mine")
            def features(self, graph, options): return torch.zeros(3)
        @hookimpl
        def sane_encoders(): return {{"mine": Encoder()}}
        """,
    )
    out = tmp_path / "out.safetensors"
    done = CliRunner().invoke(command, ["embed", "small-cnn", "--encoder", "mine", "-o", str(out)])
    assert done.exit_code == 0, done.stderr
    assert set(load_file(out)) == {"small-cnn/embedding", "small-cnn/layers"}


def test_a_library_call_leaves_standard_output_alone(install, capsys) -> None:
    install("printing", "print('hello')")
    Host.installed()
    assert capsys.readouterr().out == "hello\n"


def test_a_commands_own_output_is_its_own(install) -> None:
    install(
        "talking",
        """
        import click
        @click.command()
        def talk(): click.echo("said")
        @hookimpl
        def sane_commands(): return [talk]
        """,
    )
    assert CliRunner().invoke(command, ["talk"]).stdout == "said\n"


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ("[sane_plugins]\nodd = not a module!\n", "its entry point is 'not a module!'"),
        ("[sane_plugins]\nodd = no_such_module_at_all\n", "No module named"),
        ("[sane_plugins]\nodd = odd:missing\n", "has no attribute 'missing'"),
        (f"[sane_plugins]\nodd = a{' ' * 50_000}!\n", "its entry point is 'a"),
        ("[sane_plugins]\n\x1b[31modd = odd\n", "printable"),
        ("[sane_plugins]\n\u202eodd = odd\n", "printable"),
        (f"[sane_plugins]\n{'o' * 1000} = odd\n", "printable"),
        ("[sane_plugins]\nodd = odd\nodd = json\n", "a plugin of that name too"),
        ("[sane_plugins]\nodd\n", "TypeError"),
        ("[sane_plugins]\nbuiltin = odd\n", "a plugin of that name too"),
    ],
)
@pytest.mark.parametrize("metadata", [True, False])
def test_odd_entry_points_are_named(install, points: str, reason: str, metadata: bool) -> None:
    install("odd", "", points=points, metadata=metadata)
    host = Host.installed()
    _use(host)
    assert len(host.problems) == 1
    assert reason in host.problems[0].error
    assert host.problems[0].plugin.isprintable()


@pytest.mark.parametrize("entry", [None, 3, b"/tmp", "/no/such", "/" + "x" * 5000])
def test_the_path_may_hold_what_is_no_folder(install, monkeypatch, entry) -> None:
    install("here", "@hookimpl\ndef sane_engines(): return {'mine': map}")
    monkeypatch.setattr(sys, "path", [entry, *sys.path])
    host = Host.installed()
    assert {"local", "mine"} <= set(host.engines())
    assert not host.problems


def test_a_finder_that_fails_hides_no_plugin(monkeypatch) -> None:
    class Finder:
        def find_spec(self, *_):
            return None

        def find_distributions(self, _):
            raise OSError("no")

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    host = Host.installed()
    _use(host)
    assert [x.error for x in host.problems] == ["OSError: no"]


def test_plugins_are_found_where_the_working_directory_is_gone(tmp_path, monkeypatch) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    _use(Host.installed())


ODD_OBJECTS = {
    "falsy": "class P:\n    def __len__(self): return 0",
    "no_truth": "class P:\n    def __bool__(self): raise OSError",
    "no_hash": "class P:\n    __hash__ = None",
    "no_name": "class P:\n    __name__ = 3",
    "specifications": "class P: ...",
}


@pytest.mark.parametrize("name", ODD_OBJECTS)
def test_an_odd_object_is_a_plugin_like_any_other(install, name: str) -> None:
    hook = "\n    @hookimpl\n    def sane_engines(self): return {'mine': map}\nsane_plugin = lambda h: P()"
    install(name, ODD_OBJECTS[name].replace("class P: ...", "class P:\n    x = 3") + hook)
    undo = attach(pluggy.PluginManager("host"))
    for host in (Host.installed(), undo.host):
        _use(host)
        assert "mine" in host.engines()
        assert any(x.name.endswith(name) and x.hooks for x in host.plugins())
        assert not host.problems
    undo()
    assert not undo.pm.get_plugins()


def test_plugins_that_ask_what_they_are_asked_get_the_others_answer(install) -> None:
    for name in ("first", "second"):
        install(
            name,
            """
            def sane_plugin(host):
                class Asking:
                    @hookimpl
                    def sane_open(self, source): return host.open(source)
                    @hookimpl
                    def sane_samplers(self): return {"mine": host.samplers()["kde"]}
                    @hookimpl
                    def sane_progress(self, event): host.report(event)
                return Asking()
            """,
        )
    for host in (Host.installed(), attach(pluggy.PluginManager("host")).host):
        _use(host)
        assert {x.place for x in host.problems} == {"sampler 'mine'"}  # both offer it


@pytest.mark.parametrize(
    "target",
    ["function", "Mine", "instance", "number", "mapping", "text"],
)
def test_an_entry_point_may_be_any_object(install, target: str) -> None:
    install(
        "anything",
        """
        def function(): ...
        class Mine: ...
        instance, number, mapping, text = Mine(), 3, {}, "text"
        """,
        points=f"[sane_plugins]\nanything = anything:{target}\n",
    )
    host = Host.installed()
    _use(host)
    host.plugins()
    assert {x.plugin for x in (*host.notes, *host.problems)} == {"anything"}
    attach(pluggy.PluginManager("host"))()


class _Offers:
    """A plugin that answers hooks with given values."""

    def __init__(self, **answers) -> None:
        for hook, answer in answers.items():
            setattr(self, hook, hookimpl(self._answer(hook, answer)))

    @staticmethod
    def _answer(hook: str, answer):
        names = {
            "sane_encode": "source, options",
            "sane_predict_properties": "source, options",
            "sane_cost": "source, options",
            "sane_initialize": "target, task",
            "sane_open": "source",
            "sane_build": "source, classes",
            "sane_save": "graph, target",
            "sane_check_save": "graph, target",
            "sane_side_files": "target",
        }.get(hook, "")
        return eval(f"lambda {names}: answer", {"answer": answer})


ESTIMATE = Estimate(
    property="p",
    value=0.5,
    unit="",
    interval=(0.0, 1.0),
    coverage=0.9,
    in_distribution=True,
    features="f",
)


COUNTS = {
    "inputs": ((1, 3, 8, 8),),
    "parameters": 1,
    "macs": 1,
    "activations": 1,
    "layers": 1,
    "weight_bytes": 4,
    "peak_bytes": 8,
}


CATEGORY = CategoryEstimate(
    property="p",
    value="ab",
    probabilities={"ab": 1.0},
    set=("ab",),
    coverage=0.9,
    in_distribution=True,
    features="f",
)


def _encoding(**fields) -> Encoding:
    good = {
        "latents": None,
        "spans": [],
        "embedding": torch.zeros(3),
        "layers": torch.zeros(1, 3),
        "names": ("weight",),
        "encoder": "mine",
    }
    return Encoding(**{**good, **fields})


WRONG_ENCODINGS = [
    "text",
    torch.zeros(3),
    _encoding(embedding=torch.full((3,), float("nan"))),
    _encoding(embedding=torch.zeros(3, 3)),
    _encoding(embedding=torch.zeros(3, device="meta")),
    _encoding(layers=torch.zeros(2, 3)),
    _encoding(names=(3,)),
    _encoding(latents=torch.zeros(4, 2)),
    _encoding(layers=None),
    _encoding(spans=None),
    _encoding(spans=["x"]),
    _encoding(spans=[(0, -5)]),
    _encoding(spans=[(0, 1), (1, 2)]),
    _encoding(embedding=torch.zeros(3, dtype=torch.complex64)),
    _encoding(embedding=torch.zeros(3).to_sparse()),
]


@pytest.mark.parametrize(
    ("hook", "answer"),
    [
        *(("sane_encode", wrong) for wrong in WRONG_ENCODINGS),
        ("sane_cost", 3),
        ("sane_cost", NetworkCost(**{**COUNTS, "macs": -1})),
        ("sane_cost", NetworkCost(**{**COUNTS, "peak_bytes": 1.5})),
        ("sane_predict_properties", "text"),
        ("sane_predict_properties", {"p": "text"}),
        ("sane_initialize", {"graph": 3}),
        ("sane_open", {"weight": torch.zeros(2)}),
        ("sane_open", type),
        ("sane_build", nn.Linear),
        ("sane_save", 3),
        ("sane_save", "elsewhere.safetensors"),
        ("sane_side_files", "x.data"),
        ("sane_side_files", [3]),
        ("sane_check_save", "yes"),
        ("sane_check_save", False),
    ],
)
def test_a_wrong_answer_is_left_out_and_the_next_is_asked(host, tmp_path, hook, answer) -> None:
    host.register(_Offers(**{hook: answer}), "wrong")
    graph, options = host.open(NETWORK), EncodeOptions(encoder="statistics")
    assert host.encode(NETWORK, options).encoder == "statistics"
    assert host.predict(NETWORK).keys() == embedded_heads().keys()
    assert isinstance(host.build("mlp"), nn.Module)
    assert host.cost("mlp").macs == 12_960
    host.check_save(graph, tmp_path / "net.safetensors")
    assert host.save(graph, tmp_path / "net.safetensors").is_file()
    expected = [] if hook == "sane_initialize" else [("wrong", hook)]
    assert [(x.plugin, x.place) for x in host.problems if x.place == hook] == expected


def test_nothing_left_is_an_error_that_names_the_plugin(host) -> None:
    host.register(_Offers(sane_open="text"), "wrong")
    with pytest.raises(PluginError, match="plugin wrong: it returned a str where a WeightGraph"):
        host.open("nothing-else-knows-it")


class _Head:
    """A head that need not be one of ours."""

    features, sane, score, scores, encoders = "f", "", "s", {}, ("statistics",)

    def __init__(self, estimate, **fields) -> None:
        self._estimate = estimate
        vars(self).update(fields)

    def estimate(self, features):
        return self._estimate(features)


def _raising(error: BaseException):
    def fail(*_):
        raise error

    return fail


WRONG_ESTIMATES = [
    _raising(KeyError("oops")),
    _raising(SystemExit(1)),
    _raising(SourceError("a", "b", "c", "d")),
    lambda _: None if False else "text",
    lambda _: float("nan"),
    lambda _: (x for x in ()),
    lambda _: Estimate(**{**vars(ESTIMATE), "value": float("nan")}),
    lambda _: Estimate(**{**vars(ESTIMATE), "value": "0.5"}),
    lambda _: Estimate(**{**vars(ESTIMATE), "interval": (1.0, 0.0)}),
    lambda _: Estimate(**{**vars(ESTIMATE), "interval": None}),
    lambda _: Estimate(**{**vars(ESTIMATE), "coverage": 3}),
    lambda _: Estimate(**{**vars(ESTIMATE), "property": 3}),
    lambda _: CategoryEstimate(**{**vars(CATEGORY), "set": "ab"}),
    lambda _: CategoryEstimate(**{**vars(CATEGORY), "value": ["ab"]}),
    lambda _: CategoryEstimate(**{**vars(CATEGORY), "probabilities": None}),
]


def test_each_heads_failure_is_its_own(host) -> None:
    def meddle(features):
        for values in features.values():
            values[:] = 1e9
        features.clear()
        return ESTIMATE

    before = host.predict(NETWORK)
    heads = {str(i): _Head(wrong) for i, wrong in enumerate(WRONG_ESTIMATES)}
    heads["foreign"] = _Head(lambda _: ESTIMATE, encoders=("sane",), sane="another")
    heads["nobody"] = _Head(lambda _: ESTIMATE, encoders=("nobody",))  # offers that encoder
    heads["meddling"] = _Head(meddle)
    host.register(_Offers(sane_property_heads=heads), "wrong")
    after = host.predict(NETWORK)
    assert after == {**before, "meddling": ESTIMATE}
    assert {x.place for x in host.problems} == {f"head '{x}'" for x in heads if x != "meddling"}
    assert {x.plugin for x in host.problems} == {"wrong"}
    with pytest.raises(PluginError, match="wrong: it raised KeyError: 'oops' in head '0'"):
        host.predict(NETWORK, PredictOptions(properties=("0",)))
    assert len(host.problems) == len(heads) - 1


@pytest.mark.parametrize(
    "head",
    [
        "text",
        _Head,
        _Head(None, encoders=("",)),
        _Head(None, encoders=3),
        _Head(None, scores=None),
        _Head(None, scores={"a": "b"}),
        _Head(None, scores={3: 0.5}),
        _Head(None, sane=None),
    ],
)
def test_what_is_no_head_is_not_offered(host, head) -> None:
    host.register(_Offers(sane_property_heads={"mine": head, "good": _Head(None)}), "wrong")
    heads = host.property_heads()
    assert "mine" not in heads
    assert "good" in heads
    assert [(x.plugin, x.place) for x in host.problems] == [("wrong", "head 'mine'")]


class _Encoder:
    name = "mine"

    def __init__(self, encode) -> None:
        self.encode = self.features = encode


@pytest.mark.parametrize("wrong", [*WRONG_ENCODINGS, KeyError("oops"), SystemExit(3)])
def test_an_encoder_that_fails_is_named(host, wrong) -> None:
    is_error = isinstance(wrong, BaseException)
    encoder = _Encoder(_raising(wrong) if is_error else lambda *_: wrong)
    host.register(_Offers(sane_encoders={"mine": encoder}), "giver")
    with pytest.raises(PluginError, match=r"plugin giver: .*encoder 'mine'"):
        host.encode(NETWORK, EncodeOptions(encoder="mine"))
    assert [(x.plugin, x.place) for x in host.problems] == [("giver", "encoder 'mine'")]
    assert host.encode(NETWORK, EncodeOptions(encoder="statistics"))
    with pytest.raises(UsageError, match="no such encoder"):
        host.encode(NETWORK, EncodeOptions(encoder="other"))


class _Sampler:
    """A sampler of a plugin that holds what cannot be copied, and says nothing of itself."""

    def __init__(self, draw) -> None:
        self._draw, self.lock = draw, Barrier(2)

    def __call__(self, prompts, count, rng):
        return self._draw(prompts, count, rng)


class _Bound(_Sampler):
    def bound(self, context):
        raise KeyError(context)


def _nan(prompts, count, rng):
    return KDE()(prompts, count, rng) * float("nan")


WRONG_SAMPLERS = {
    "raising": _Sampler(_raising(KeyError("oops"))),
    "exiting": _Sampler(_raising(SystemExit(0))),
    "shape": _Sampler(lambda prompts, *_: prompts[0]),
    "type": _Sampler(lambda p, count, rng: KDE()(p, count, rng).double()),
    "device": _Sampler(lambda p, count, rng: KDE()(p, count, rng).to("meta")),
    "number": _Sampler(_nan),
    "mapping": _Sampler(lambda *_: {"latents": 3}),
    "bound": _Bound(None),
}


@pytest.mark.parametrize("name", WRONG_SAMPLERS)
def test_the_race_goes_on_without_a_sampler_that_fails(host, name: str) -> None:
    host.register(_Offers(sane_samplers=WRONG_SAMPLERS), "giver")
    sampler = host.samplers()[name]
    task, target = load_task("digits", size=28), nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    options = InitializeOptions(sampler=sampler, candidates=2, keep=1, images=64, rung=3)
    result = host.initialize(target, task, [nn.Linear(784, 10)], options)
    assert result.rows
    assert not any(row.kind.value == "sane" for row in result.rows)
    assert [(x.plugin, x.place) for x in host.problems] == [("giver", f"sampler '{name}'")]
    assert any(note.startswith("no more SANE candidates were drawn") for note in result.notes)
    assert " at 0x" not in json.dumps(result.provenance["options"])
    alone = InitializeOptions(sampler=sampler, scored=False, images=64)
    with pytest.raises(PluginError, match=r"sampler _(Sampler|Bound): it r"):
        # A graph cannot run, so there is no transfer to take in its place.
        host.initialize(target, task, [host.open(nn.Linear(784, 10))], alone)


def test_ours_keep_their_names_and_then_who_came_first(host) -> None:
    first, second = _Sampler(None), _Sampler(None)
    host.register(_Offers(sane_samplers={"kde": first, "new": first}), "a")
    host.register(_Offers(sane_samplers={"new": second, "kde": second}), "b")
    assert isinstance(host.samplers()["kde"], KDE)
    assert host.samplers()["new"] is first
    assert {(x.plugin, x.place) for x in host.problems} == {
        ("a", "sampler 'kde'"),
        ("b", "sampler 'kde'"),
        ("b", "sampler 'new'"),
    }


def test_what_is_ours_stays_whole_in_a_plugins_hands(host) -> None:
    class Meddling:
        @hookimpl
        def sane_encoders(self):
            return {**ENCODERS, "more": ENCODERS["sane"]}

        @hookimpl
        def sane_property_heads(self):
            heads = embedded_heads()
            heads["mine"] = _Head(None)
            return heads

    known = set(embedded_heads())
    host.register(Meddling(), "meddling")
    assert host.encoders().keys() >= {"sane", "more"}
    host.property_heads().clear()
    assert set(host.property_heads()) == set(embedded_heads()) == known
    assert [(x.plugin, x.place) for x in host.problems if "head" in x.place] == [
        ("meddling", "sane_property_heads")
    ]


def test_an_observer_that_fails_is_asked_once(host) -> None:
    calls = []

    class Failing:
        @hookimpl
        def sane_progress(self, event):
            calls.append(event)
            raise SaneError("a", "b", "c", f"{event.done}")

    host.register(Failing(), "failing")
    for i in range(1000):
        host.report(Progress(job="job", done=i, total=1000))
    assert len(calls) == 1
    assert len(host.problems) == 1


def test_a_problem_is_kept_once_however_the_reason_varies(host) -> None:
    class Failing:
        @hookimpl
        def sane_open(self):
            raise KeyError(object())

    host.register(Failing(), "failing")
    for _ in range(100):
        host.open(NETWORK)
    assert len(host.problems) == 1


def test_ctrl_c_is_the_users(host) -> None:
    class Pressed:
        @hookimpl
        def sane_open(self):
            raise KeyboardInterrupt

    host.register(Pressed(), "pressed")
    with pytest.raises(KeyboardInterrupt):
        host.open(NETWORK)
    assert not host.problems


def test_a_wrapper_passes_on_errors_about_the_source(host) -> None:
    seen = []

    class Wrapper:
        @hookimpl(wrapper=True)
        def sane_open(self):
            try:
                return (yield)
            except SourceError as error:
                seen.append(error)
                raise

    class Reader:
        @hookimpl
        def sane_open(self, source):
            if source == "mine":
                raise SourceError(source, "it is broken", "a whole one is needed", "repair it")

    host.register(Wrapper(), "wrapper")
    host.register(Reader(), "reader")
    with pytest.raises(SourceError, match="it is broken"):
        host.open("mine")
    assert len(seen) == 1
    assert not host.problems


def test_slow_plugins_are_named_with_their_seconds(install, monkeypatch) -> None:
    monkeypatch.setattr("sane_plugins.plugins.problems.SLOW_SECONDS", 0.05)
    install("slow_import", "import time; time.sleep(0.1)\n@hookimpl\ndef sane_open(source): ...")
    slow = "import time\n@hookimpl\ndef {}: time.sleep(0.1)"
    install("slow_decline", slow.format("sane_open(source)"))
    install("slow_offer", slow.format("sane_engines()"))
    install("slow_observer", slow.format("sane_progress(event)"))
    host = Host.installed()
    _use(host)
    for plugin, text in {
        "slow_import": r"its import took \d+\.\d s",
        "slow_decline": r"sane_open took \d+\.\d s",
        "slow_offer": r"sane_engines took \d+\.\d s",
        "slow_observer": r"sane_progress took \d+\.\d s in 1 calls",
    }.items():
        assert any(x.plugin == plugin and re.match(text, x.text) for x in host.notes)
    assert not host.problems
    assert SLOW_SECONDS == 2


def test_threads_that_ask_at_once_hold_the_same_offers() -> None:
    for _ in range(5):
        host, start = Host.installed(), Barrier(8)

        def ask(_, host=host, start=start) -> int:
            start.wait()
            return id(host.samplers()["kde"])

        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(ask, range(8)))) == 1


def test_eight_threads_attach_and_detach_in_a_storm(install) -> None:
    install("raising_open", AT_CALL["raising_open"][0])
    pm, start = pluggy.PluginManager("host"), Barrier(8)

    def storm(i: int) -> None:
        start.wait()
        for _ in range(3):
            undo = attach(pm)
            assert attach(pm).pm is pm
            assert pm.hook.sane_open(source=3) is None
            if i % 2:
                undo()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(storm, range(8)))
    undo = attach(pm)
    plugins = pm.get_plugins()
    assert attach(pm) is undo
    assert pm.get_plugins() == plugins
    assert len(pm.hook.sane_samplers()) == 1
    assert pm.hook.sane_open(source=NETWORK).size == 6
    undo()
    assert not pm.get_plugins()


def test_a_stale_undo_leaves_a_newer_attachment_alone() -> None:
    pm = pluggy.PluginManager("host")
    old = attach(pm)
    old()
    attach(pm)
    old()
    assert pm.hook.sane_open(source=NETWORK).size == 6


def test_an_attachment_that_fails_leaves_nothing_behind() -> None:
    pm, mark = pluggy.PluginManager("host"), pluggy.HookimplMarker("host")

    class Theirs:
        @mark
        def sane_open(self, source, another): ...

    pm.register(Theirs(), "theirs")
    with pytest.raises(PluginError, match="its plugin theirs implements sane_open with another"):
        attach(pm)
    assert [name for name, _ in pm.list_name_plugin()] == ["theirs"]
    assert not pm.hook.sane_open.has_spec()
    assert not hasattr(pm.hook, "sane_encode")
    pm.unregister(name="theirs")
    attach(pm)
    assert pm.hook.sane_open(source=NETWORK).size == 6


def test_a_hang_ends_with_ctrl_c(tmp_path) -> None:
    """What hangs cannot be helped, and Ctrl-C must get through."""
    hangs = (
        "import os, signal, threading, time\n"
        "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "time.sleep(600)"
    )
    install_plugin(tmp_path, "hanging", hangs)
    code = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may have it ignored
        "from sane_plugins import Host; Host.installed()"
    )
    environment = {"PATH": "", **_with_path(str(tmp_path))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert b"KeyboardInterrupt" in done.stderr
