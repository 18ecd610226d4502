"""No code runs that the user did not name: the working directory, and what zoos name."""

import json
import os
import shutil
import sys
import sysconfig
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hostile.bounded import run, run_python
from safetensors.torch import save_file

from sane_plugins import Host
from sane_plugins.architectures import FULL_TRUST, Size, Trust, build, build_by_name, small_cnn
from sane_plugins.architectures.folder_import import modules_in
from sane_plugins.cli.main import main
from sane_plugins.errors import SaneError, SourceError, ZooError
from sane_plugins.zoo import (
    AddOptions,
    Entry,
    EvaluateOptions,
    Zoo,
    add_networks,
    evaluate_zoo,
    write_zoo,
)

RUNS = "import os, pathlib; pathlib.Path(os.environ['RAN']).touch()\n"
BUILDER = """from torch import nn
import {sibling}


def build(classes=10):
    return nn.Linear(4, classes)
"""


@pytest.fixture
def ran(tmp_path, monkeypatch) -> Path:
    """Return the file that a stranger's code makes where it runs."""
    path = tmp_path / "ran"
    monkeypatch.setenv("RAN", str(path))
    return path


@pytest.fixture
def stranger(tmp_path) -> Path:
    """Make a folder that looks as if a plugin were installed there, with modules that torch would import."""
    folder = tmp_path / "stranger"
    info = folder / "evil-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sane_plugins]\nevil = evil_plugin\n")
    for name in ("evil_plugin", "triton", "tabulate", "rich", "click", "sklearn", "queue"):
        (folder / f"{name}.py").write_text(RUNS + "raise SystemExit('a stranger ran')\n")
    return folder


# The working directory


@pytest.mark.parametrize("arguments", [("list",), ("zoo", "train", "--help")])
def test_a_folder_runs_nothing_when_a_command_starts_in_it(stranger, ran, arguments):
    outcome = run(*arguments, cwd=stranger).require_small()
    assert outcome.code == 0, outcome.stderr
    assert "evil" not in outcome.stdout + outcome.stderr
    assert not ran.exists()


def test_a_folder_runs_nothing_under_the_installed_command(stranger, ran):
    script = Path(sys.executable).with_name("sane-init")
    if not script.is_file():
        pytest.skip("the scripts are not installed")
    out = stranger.parent / "out.safetensors"
    outcome = run_python(script, "--no-score", "-o", out, cwd=stranger, PYTHONSAFEPATH="")
    assert outcome.code == 0, outcome.stderr
    assert out.is_file()
    assert not ran.exists()


@pytest.mark.parametrize("spelling", ["", ".", "absolute"])
def test_a_host_takes_no_plugin_from_the_working_directory(stranger, ran, monkeypatch, spelling):
    monkeypatch.chdir(stranger)
    monkeypatch.syspath_prepend(str(stranger) if spelling == "absolute" else spelling)
    host = Host.installed()
    assert "builtin" in {plugin.name for plugin in host.plugins()}
    assert not host.problems
    assert not ran.exists()


def test_what_pythonpath_names_counts_as_installed(tmp_path, monkeypatch):
    info = tmp_path / "good-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: good\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sane_plugins]\ngood = json\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "good" not in {plugin.name for plugin in Host.installed().plugins()}
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "good" in {plugin.name for plugin in Host.installed().plugins()}


def test_a_typed_function_may_lie_in_the_working_directory_and_import_its_neighbours(tmp_path):
    (tmp_path / "mine.py").write_text(BUILDER.format(sibling="mine_layers"))
    (tmp_path / "mine_layers.py").touch()
    outcome = run("inspect", "mine:build", "--json", cwd=tmp_path)
    assert outcome.code == 0, outcome.stderr


def test_what_is_installed_probes_for_nothing_in_the_working_directory(tmp_path, ran, monkeypatch):
    library = tmp_path / "library"
    library.mkdir()
    (library / "installed_models.py").write_text(
        "from torch import nn\ntry:\n    import accelerate_it\nexcept ImportError:\n    pass\n"
        "def build(classes=3):\n    return nn.Linear(4, classes)\n"
    )
    (tmp_path / "accelerate_it.py").write_text(RUNS)
    monkeypatch.syspath_prepend(str(library))
    build_by_name("installed_models:build", 3, Trust(everything=True, folder=tmp_path))
    assert not ran.exists()


def test_functions_of_the_working_directory_may_import_one_another_in_turn(tmp_path):
    for name in ("first", "second"):
        (tmp_path / f"mine_{name}.py").write_text(BUILDER.format(sibling=f"mine_{name}_layers"))
        (tmp_path / f"mine_{name}_layers.py").touch()
    (tmp_path / "mine_package").mkdir()
    for name in ("first", "second"):
        text = BUILDER.format(sibling=f"mine_package_{name}")
        (tmp_path / "mine_package" / f"{name}.py").write_text(text)
        (tmp_path / f"mine_package_{name}.py").touch()
    trust = Trust(everything=True, folder=tmp_path)
    names = ("mine_first", "mine_second", "mine_package.first", "mine_package.second")
    for name in names:
        assert build_by_name(f"{name}:build", 3, trust).out_features == 3


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("test:build", "installed comes before the current folder"),
        ("mine_lazy:build", "PYTHONPATH"),
        ("mine_missing:build", "PYTHONPATH"),
    ],
)
def test_it_is_told_where_a_function_is_looked_for(tmp_path, source, told):
    (tmp_path / "test.py").write_text("build = 1\n")
    (tmp_path / "mine_lazy.py").write_text("def build():\n    import mine_not_there\n")
    with pytest.raises(SourceError, match=told):
        build_by_name(source, None, Trust(everything=True, folder=tmp_path))


def test_the_folder_of_installed_packages_may_be_the_working_directory(monkeypatch):
    monkeypatch.chdir(sysconfig.get_path("purelib"))
    monkeypatch.setenv("PYTHONPATH", "")
    if not list(Path.cwd().glob("sane_plugins*.dist-info")):
        pytest.skip("it is not installed there")
    assert "builtin" in {plugin.name for plugin in Host.installed().plugins()}


def test_a_working_directory_that_was_deleted(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "builtin" in {plugin.name for plugin in Host.installed().plugins()}


@pytest.mark.parametrize("text", [b"text.usetex: True\nsavefig.dpi: 1e9\n", b"\xff\xfe"])
def test_pictures_follow_no_settings_of_the_working_directory(stranger, text):
    if find_spec("matplotlib") is None:
        pytest.skip("needs matplotlib")
    (stranger / "matplotlibrc").write_bytes(text)
    outcome = run("inspect", "small_cnn", "--plot", "out.png", cwd=stranger).require_small()
    if text.startswith(b"text"):
        assert outcome.code == 0, outcome.stderr
    else:
        assert "matplotlibrc" in outcome.require_sentence()


@pytest.mark.parametrize("sibling", ["json", "no_such_module_anywhere"])
def test_the_working_directory_is_left_again_also_after_a_failure(tmp_path, sibling):
    (tmp_path / "mine_once.py").write_text(BUILDER.format(sibling=sibling))
    (tmp_path / "mine_later.py").touch()
    finders, path = [*sys.meta_path], [*sys.path]
    trust = Trust(everything=True, folder=tmp_path)
    try:
        if sibling == "json":
            assert build_by_name("mine_once:build", 3, trust).out_features == 3
        else:
            with pytest.raises(SourceError, match="cannot be imported"):
                build_by_name("mine_once:build", 3, trust)
        assert (sys.meta_path, sys.path) == (finders, path)
        with pytest.raises(ModuleNotFoundError):
            __import__("mine_later")
    finally:
        sys.modules.pop("mine_once", None)


def test_other_threads_do_not_import_from_the_working_directory(tmp_path):
    (tmp_path / "mine_alone.py").touch()
    found = []

    def look() -> None:
        try:
            __import__("mine_alone")
            found.append(True)
        except ModuleNotFoundError:
            found.append(False)

    with modules_in(tmp_path):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert found == [False]
        look()
    sys.modules.pop("mine_alone")
    assert found == [False, True]


def test_installed_packages_come_before_the_working_directory(tmp_path, ran):
    (tmp_path / "torchgen.py").write_text(RUNS)
    with pytest.raises(SourceError):
        build_by_name("torchgen:no_such", None, Trust(everything=True, folder=tmp_path))
    assert not ran.exists()


def test_workers_of_a_zoo_find_the_function_and_nothing_else_of_the_folder(stranger, ran):
    for name in ("click", "rich", "sklearn"):
        (stranger / f"{name}.py").unlink()
    for name in ("pickle", "socket", "runpy"):  # of what starts processes
        (stranger / f"{name}.py").write_text(RUNS)
    (stranger / "mine.py").write_text(
        "from torch import nn\n\n\ndef build(channels_in, classes, act, dropout):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64 * channels_in, classes))\n"
    )
    outcome = run(
        *("zoo", "train", "--architecture", "mine:build", "-o", "zoo", "--networks", 2),
        *("--epochs", 1, "--images", 64, "--processes", 2, "--group", 1, "--act", "relu"),
        cwd=stranger,
    )
    assert outcome.code == 0, outcome.stderr
    if sys.version_info >= (3, 11):
        assert not ran.exists()


def test_a_file_that_is_called_like_a_function_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "os:abort").touch()
    with pytest.raises(SourceError, match="no plugin reads this file"):
        Host.installed().open("os:abort")


# Zoos


FACTORIES = {
    "a shell": {"name": "os:system", "command": "touch $RAN"},
    "an evaluation": {"name": "builtins:eval", "source": "__import__('os').abort()"},
    "an exit": {"name": "os:abort"},
    "a function of a library": {"name": "timm:create_model", "model_name": "hf-hub:x/y"},
    "a walk": {"name": "torch.nn.modules.linear:Linear", "in_features": 1, "out_features": 1},
    "ours by its path": {"name": "sane_plugins.zoo:Zoo.open"},
    "no name": {"depth": 3},
    "an empty name": {"name": None},
    "several names": {"name": ["os:abort"]},
    "a line for a shell": {"name": "x:y; touch $RAN"},
    "a long name": {"name": "m:" + 10**6 * "f"},
}
LIBRARY = {
    "no builder": {"name": "torchvision.models:list_models"},
    "a module": {"name": "torchvision.models:resnet"},
    "a dunder": {"name": "torchvision.models:__builtins__"},
    "another folder": {"name": "torchvision.datasets:MNIST", "root": ".", "download": True},
    "a download": {"name": "torchvision.models:resnet18", "weights": "DEFAULT"},
    "an old download": {"name": "torchvision.models:resnet18", "pretrained": True},
    "many classes": {"name": "torchvision.models:resnet18", "num_classes": 10**9},
}
LARGE = {
    "wide": {"name": "mlp", "width": 10**9},
    "deep": {"name": "mlp", "depth": 10**9},
    "a size": {"name": "vit", "size": 7 * 10**8},
    "blocks": {"name": "resnet", "depth": 6 * 10**8 + 2},
    "a factor": {"name": "wide_cnn", "factor": 10**9},
    "classes": {"name": "small_cnn", "classes": 10**12},
    "no number": {"name": "mlp", "width": "1e9"},
    "negative": {"name": "mlp", "width": -1},
    "a negative depth": {"name": "mlp", "depth": -1},
    "many digits": {"name": "mlp", "width": 10**4000},
    "a list": {"name": "mlp", "width": [[[]]]},
    "an attribute": {"name": "mlp", "act": "__class__"},
    "unhashable": {"name": "mlp", "act": {}},
    "another argument": {"name": "mlp", "self": 1},
}


@pytest.fixture(scope="module")
def harmless(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("zoos") / "harmless"
    torch.manual_seed(0)
    entry = Entry(
        network="a",
        checkpoint="1",
        factory={"name": "small_cnn"},
        properties={"test_accuracy": 0.5, "finite": True},
    )
    write_zoo(folder, "harmless", [(entry, small_cnn().state_dict())])
    return folder


def with_factory(harmless: Path, folder: Path, factory: object, version: int = 2) -> Path:
    """Copy a zoo, its entry built by another factory."""
    shutil.copytree(harmless, folder)
    header, line = (folder / "index.jsonl").read_text().splitlines()
    record = {**json.loads(line), "factory": factory}
    if version == 2:
        (folder / "index.jsonl").write_text(f"{header}\n{json.dumps(record)}\n")
        return folder
    (folder / record.pop("file")).rename(folder / "weights.safetensors")
    (folder / "index.jsonl").unlink()
    for key in ("form", "digest"):
        record.pop(key)
    index = {"version": 1, "name": "old", "entries": [record]}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", [*FACTORIES, *LARGE])
def test_what_a_zoo_names_is_not_called(harmless, tmp_path, ran, kind, version):
    folder = with_factory(harmless, tmp_path / "zoo", {**FACTORIES, **LARGE}[kind], version)
    _require_refused(folder, tmp_path)
    assert not ran.exists()


@pytest.mark.parametrize("kind", LIBRARY)
def test_of_a_library_only_its_registered_networks_are_built(harmless, tmp_path, kind):
    _require_torchvision()
    _require_refused(with_factory(harmless, tmp_path / "zoo", LIBRARY[kind]), tmp_path)


def _require_torchvision() -> None:
    """Skip without it; importing it plainly fails where it was built for another torch."""
    if find_spec("torchvision") is None:
        pytest.skip("needs torchvision")


def _require_refused(folder: Path, tmp_path: Path) -> None:
    zoo = Zoo.open(folder)
    (entry,) = zoo.entries
    for use in (zoo.graph, zoo.module):
        with pytest.raises(SaneError) as error:
            use(entry)
        assert str(folder) in str(error.value)
        assert "--factory x:y;" not in str(error.value)
        assert len(str(error.value)) < 1500
    if (folder / "index.jsonl").is_file():  # `add` reads no index of version 1
        with pytest.raises(ZooError, match="none of its 1"):
            add_networks(folder, tmp_path / "out", Host.installed().open, AddOptions())


def test_a_library_network_is_built_from_a_file(tmp_path):
    _require_torchvision()
    factory = {"name": "torchvision.models:squeezenet1_1", "num_classes": 3}
    entry = Entry(network="a", checkpoint="1", factory=factory, properties={})
    state = build(factory).state_dict()
    zoo = write_zoo(tmp_path / "zoo", "zoo", [(entry, state)])
    assert zoo.module(zoo.entries[0]).state_dict().keys() == state.keys()


def _linear_of_the_user() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))


def test_a_function_is_called_where_the_user_names_it(tmp_path):
    name = f"{__name__}:_linear_of_the_user"
    entry = Entry(network="a", checkpoint="1", factory={"name": name}, properties={})
    write_zoo(tmp_path / "zoo", "zoo", [(entry, _linear_of_the_user().state_dict())])
    host = Host.installed()
    with pytest.raises(ZooError, match=f"--factory {name}"):
        add_networks(tmp_path / "zoo", tmp_path / "a", host.open, AddOptions())
    for trust in (Trust(frozenset({name})), FULL_TRUST):
        options = AddOptions(trust=trust)
        out = tmp_path / str(trust.everything)
        assert add_networks(tmp_path / "zoo", out, host.open, options).added == ["zoo/a/1"]
        zoo = Zoo.open(out, trust)
        assert isinstance(zoo.module(zoo.entries[0]), torch.nn.Sequential)


def test_what_is_trusted_is_told_before_it_is_called(harmless, tmp_path, ran, caplog):
    folder = with_factory(harmless, tmp_path / "zoo", FACTORIES["a shell"])
    zoo = Zoo.open(folder, FULL_TRUST)
    assert "os:system(command='touch $RAN')" in caplog.text
    assert not ran.exists()
    with pytest.raises(SaneError, match=r"a torch\.nn\.Module is needed"):
        zoo.module(zoo.entries[0])


def broken_indexes(header: dict, record: dict) -> dict[str, str]:
    """Return indexes that are none, each by what is wrong with it."""
    records = {
        "a factory of text": {"factory": "os:abort"},
        "a factory of a list": {"factory": ["x"]},
        "a name of a number": {"network": 5},
        "properties of a list": {"properties": [1]},
        "an empty property": {"properties": {"test_accuracy": None}},
        "another field": {"evil": 1},
        "another folder": {"file": "../x"},
        "a name that is no text": {"checkpoint": "\ud800"},
        "no form": {"form": "no"},
    }
    forms = {
        "a tensor that is no text": {"tensors": [["\ud800", "float32", [8]]]},
        "a tie to nothing": {"ties": {"a": "b"}},
        "an axis of nothing": {"axes": {"b": 0}},
        "a large axis": {"axes": {"0.weight": 2**70}},
        "a shape of text": {"tensors": [["0.weight", "float32", ["8"]]]},
    }
    return {
        "nothing": "",
        "another version": json.dumps({**header, "version": 99}),
        "nested": "[" * 100_000,
        "its name": _lines({**header, "name": "\ud800"}, record),
        "no line": json.dumps(header) + "\n[]\n",
        **{kind: _lines(header, {**record, **changes}) for kind, changes in records.items()},
        **{kind: _lines(_with_form(header, **changes), record) for kind, changes in forms.items()},
    }


def _lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _with_form(header: dict, **changes: object) -> dict:
    forms = {name: {**form, **changes} for name, form in header["forms"].items()}
    return {**header, "forms": forms}


def test_one_bad_zoo_never_ends_an_add(harmless, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(harmless, runs / "good")
    header, record = map(json.loads, (harmless / "index.jsonl").read_text().splitlines())
    broken = broken_indexes(header, record)
    for kind, text in broken.items():
        shutil.copytree(harmless, runs / kind)
        (runs / kind / "index.jsonl").write_text(text)
    with_factory(harmless, runs / "a shell", FACTORIES["a shell"])
    shutil.copytree(harmless, runs / "a pipe")
    (weights,) = (runs / "a pipe").glob("weights-*")
    weights.unlink()
    os.mkfifo(weights)
    (runs / "not text").mkdir()
    (runs / "not text" / "index.jsonl").write_bytes(b"\xff\xfe")
    torch.save(small_cnn(classes=3).state_dict(), runs / "other.pt")
    done = add_networks(runs, tmp_path / "zoo", Host.installed().open, AddOptions())
    assert sorted(done.added) == ["harmless/a/1", "runs/other.pt"]
    others = {"a shell/a/1", "a pipe/a/1", "not text"}
    assert done.unread.keys() == {f"runs/{name}" for name in {*broken, *others}}
    assert all(reason.endswith(".") for reason in done.unread.values())


def test_the_index_of_a_zoo_is_limited(harmless, tmp_path):
    folder = with_factory(harmless, tmp_path / "zoo", {})
    os.truncate(folder / "index.jsonl", 2**29)
    with pytest.raises(ZooError, match="at most"):
        Zoo.open(folder)


def test_commands_on_zoos_ask_for_the_function(harmless, tmp_path, ran):
    folder = with_factory(harmless, tmp_path / "zoo", FACTORIES["a shell"])
    out = tmp_path / "out.safetensors"
    for arguments in (
        ("zoo", "show", folder),
        ("zoo", "evaluate", folder, "--task", "digits", "--size", 28),
        ("pretrain", folder, "-o", out),
        ("heads", "fit", folder, "-o", out, "--property", "test_accuracy"),
        ("zoo", "add", folder, "-o", tmp_path / "copy"),
    ):
        done = CliRunner().invoke(main, [str(x) for x in arguments])
        if arguments[1] != "show":
            assert done.exit_code == 1, (arguments, done.output)
            assert "--factory os:system" in done.stderr, done.output
        assert not ran.exists()
    assert not out.exists()


def test_a_measurement_asks_for_the_function(harmless, tmp_path, ran):
    from sane_plugins.tasks import load_task

    folder = with_factory(harmless, tmp_path / "zoo", FACTORIES["a shell"])
    result = evaluate_zoo(folder, load_task("digits", 28), EvaluateOptions(images=2))
    assert "os:system" in next(iter(result.skipped.values()))
    assert not ran.exists()


def test_the_size_limit_counts_before_memory_is_taken():
    with pytest.raises(SourceError, match="more than 100 values"):
        build({"name": "mlp", "width": 10**6, "size": 10**6}, most=Size(100, 10))


PUBLISHED: dict[str, dict[str, object]] = {
    "a list": {"test_accuracy": [1]},
    "nothing": {"test_accuracy": None},
    "no text": {"model": "\ud800"},
    "no activation": {"act": []},
    "a function": {"act": "os:abort"},
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_bad_published_zoo_replaces_no_good_one(harmless, tmp_path, kind):
    out = tmp_path / "out"
    shutil.copytree(harmless, out)
    state = {f"m/1/{key}": x for key, x in small_cnn().state_dict().items()}
    save_file(state, tmp_path / "new.safetensors")
    record = {"model": "m", "epoch": 1, "act": "relu", "p": 0.0, **PUBLISHED[kind]}
    (tmp_path / "new.json").write_text(json.dumps([record]))
    command = ["zoo", "import", str(tmp_path / "new.json"), "-o", str(out), "--force"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1, done.output
    assert "new.json" in done.stderr or kind in ("no activation", "a function")
    assert (out / "index.jsonl").read_bytes() == (harmless / "index.jsonl").read_bytes()


def test_another_network_is_initialised_near_a_zoo_of_ones_own_function(tmp_path):
    from sane_plugins.cli.initialize import main as sane_init

    name = f"{__name__}:_linear_of_the_user"
    entry = Entry(network="a", checkpoint="1", factory={"name": name}, properties={})
    write_zoo(tmp_path / "zoo", "zoo", [(entry, _linear_of_the_user().state_dict())])
    command = ["sane_plugins.architectures.families:mlp", "--prompts", str(tmp_path / "zoo")]
    command += ["--no-score", "--size", "28", "-o", str(tmp_path / "out.safetensors")]
    done = CliRunner().invoke(sane_init, command)
    assert f"--factory {name}" in done.stderr
    done = CliRunner().invoke(sane_init, [*command, "--factory", name])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("command", ["show LONG", "add LONG -o zoo", "evaluate LONG --task digits"])
def test_a_name_too_long_for_a_zoo_is_told(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["zoo", *command.replace("LONG", 5000 * "x").split()])
    assert done.exit_code in (1, 2)
    assert "unexpected" not in done.stderr
    assert "xxx" in done.stderr
