"""What a run would write is checked against what it reads and against itself, before any work."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hostile.bounded import run, run_python
from safetensors.torch import save_file
from torch import nn

from sane_plugins import pretraining, tasks, zoo, zoo_training
from sane_plugins.atomic_files import require_outputs
from sane_plugins.cli.initialize import main as sane_init
from sane_plugins.cli.main import main as sane_plugins
from sane_plugins.errors import SourceError, UsageError
from sane_plugins.formats import save_checkpoint, save_safetensors, save_sharded
from sane_plugins.host import Host
from sane_plugins.weights import from_module


def _graph():
    return from_module(nn.Linear(4, 4))


def _zoo(folder: Path) -> Path:
    state = {"weight": torch.ones(4, 4), "bias": torch.ones(4)}
    entry = zoo.Entry(network="a", checkpoint="0", factory={}, properties={"test_accuracy": 0.5})
    zoo.write_zoo(folder, "small", [(entry, state)])
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with a file of every kind that commands read; work fails."""
    monkeypatch.chdir(tmp_path)
    save_safetensors(_graph(), tmp_path / "net.safetensors")
    save_checkpoint(_graph(), tmp_path / "net.pt")
    save_sharded(_graph(), tmp_path / "big.safetensors.index.json", limit=40)
    (tmp_path / "sane.safetensors").write_text("a SANE")
    (tmp_path / "task").mkdir()
    images = np.zeros((4, 8, 8), np.uint8)
    np.savez(tmp_path / "task" / "images.npz", x_train=images, y_train=np.arange(4) % 2)
    _zoo(tmp_path / "zoo")

    def work(*_arguments, **_options):
        raise SourceError("work", "it was begun", "nothing is", "mend it")  # exit code 1

    monkeypatch.setattr(tasks, "load_task", work)
    monkeypatch.setattr(zoo.Zoo, "open", work)
    monkeypatch.setattr(pretraining, "pretrain", work)
    monkeypatch.setattr(zoo_training, "train_zoo", work)
    monkeypatch.setattr("sane_plugins.inspection.survey_network", work)
    monkeypatch.setattr("sane_plugins.features.embed", work)
    return tmp_path


def _contents(folder: Path) -> dict[str, bytes | str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink())
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else "broken link"
        for path in files
    }


def _refused(folder: Path, arguments: list[str]) -> str:
    """Run a command; return its one sentence, after checking that it is wrong usage and touches nothing."""
    before = _contents(folder)
    command, rest = (
        (sane_init, arguments[1:]) if arguments[0] == "sane-init" else (sane_plugins, arguments)
    )
    done: Result = CliRunner().invoke(command, rest)
    assert done.exit_code == 2, (done.output, done.exception)
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    assert _contents(folder) == before
    return sentence


# `X` stands for the output; each line names it once, and reads what the next list says.
COMMANDS = {
    "sane-init": "sane-init net.pt --factory a:b --sane sane.safetensors --prompts net.safetensors"
    " --prompts big.safetensors.index.json --task task/images.npz -o X",
    "sane-init --report": "sane-init net.pt --factory a:b --sane sane.safetensors --prompts zoo"
    " --prompts net.safetensors --task task/images.npz -o new.safetensors --report X",
    "embed": "embed net.safetensors net.pt big.safetensors.index.json --sane sane.safetensors -o X",
    "heads fit": "heads fit zoo --sane sane.safetensors -o X",
    "pretrain": "pretrain zoo --images small=task/images.npz -o X",
    "inspect --plot": "inspect net.safetensors --plot X",
}
SOURCES = {
    "sane-init": [
        "net.pt",
        "sane.safetensors",
        "net.safetensors",
        "big.safetensors.index.json",
        "task/images.npz",
    ],
    "sane-init --report": ["net.pt", "sane.safetensors", "net.safetensors", "task/images.npz"],
    "embed": ["net.safetensors", "net.pt", "big.safetensors.index.json", "sane.safetensors"],
    "heads fit": ["sane.safetensors", "zoo/index.jsonl"],
    "pretrain": ["zoo/index.jsonl", "task/images.npz"],
    "inspect --plot": [],
}
ALL_SOURCES = [(command, source) for command, sources in SOURCES.items() for source in sources]


def _spelled(here: Path, source: str, spelling: str) -> str:
    path = here / source
    if spelling == "absolute":
        return str(path)
    if spelling == "dotted":
        return f"zoo/../{source}"
    if spelling in ("link", "hard link"):
        link = here / f"other{path.suffix}"
        link.symlink_to(path) if spelling == "link" else link.hardlink_to(path)
        return link.name
    return source


@pytest.mark.parametrize("spelling", ["plain", "absolute", "dotted", "link", "hard link"])
@pytest.mark.parametrize(("command", "source"), ALL_SOURCES)
def test_no_output_is_a_source(here: Path, command: str, source: str, spelling: str) -> None:
    output = _spelled(here, source, spelling)
    arguments = [output if part == "X" else part for part in COMMANDS[command].split()]
    for force in ([], ["--force"]):
        if spelling == "hard link" and source.startswith("zoo"):
            continue  # the name in the zoo stays what it is
        sentence = _refused(here, [*arguments, *force])
        assert "read by the same run" in sentence, sentence
        assert output in sentence


@pytest.mark.parametrize("command", ["embed", "sane-init"])
@pytest.mark.parametrize("index", [0, 1])
def test_no_output_is_a_file_that_a_source_names(here: Path, command: str, index: int) -> None:
    shard = sorted(here.glob("big-*.safetensors"))[index].name
    arguments = [shard if part == "X" else part for part in COMMANDS[command].split()]
    assert "read by the same run" in _refused(here, [*arguments, "--force"])


def test_new_files_may_lie_in_a_folder_of_one_network_and_be_replaced(here: Path) -> None:
    """Only the files of the network are kept: its index and what this names."""
    folder = here / "folder"
    folder.mkdir()
    save_sharded(_graph(), folder / "big.safetensors.index.json", limit=40)
    (folder / "new.safetensors").write_text("mine")
    arguments = ["embed", "folder", "-o", "folder/new.safetensors", "--force"]
    assert "it was begun" in CliRunner().invoke(sane_plugins, arguments).output
    for path in folder.glob("big*"):
        sentence = _refused(here, ["embed", "folder", "-o", str(path), "--force"])
        assert "read by the same run" in sentence


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_is_a_new_file_in_a_folder_that_is_there(here: Path, command: str) -> None:
    if command == "inspect --plot":
        pytest.importorskip("matplotlib")
    end = {"inspect --plot": ".png", "sane-init --report": ".html"}.get(command, ".safetensors")
    (here / f"there{end}").write_text("precious")
    (here / f"folder{end}").mkdir()
    os.mkfifo(here / f"pipe{end}")
    (here / f"null{end}").symlink_to("/dev/null")
    (here / f"broken{end}").symlink_to(here / "nowhere")
    (here / f"astray{end}").symlink_to(here / "nowhere" / "new")
    (here / "file").write_text("precious")
    cases = {
        f"there{end}": ("it exists", False),
        f"broken{end}": ("it exists", False),
        f"folder{end}": ("it is a folder", True),
        f"pipe{end}": ("it is a pipe", True),
        f"null{end}": ("it is a device", True),
        f"none/new{end}": ("its folder does not exist", True),
        f"file/new{end}": ("folder", True),
        f"astray{end}": (f"astray{end}: it ", True),
        f"new{end}/": ("names a folder", True),
        f"{'x' * 260}{end}": ("name", True),
    }
    for output, (said, with_force) in cases.items():
        arguments = [output if part == "X" else part for part in COMMANDS[command].split()]
        for force in ([], ["--force"]) if with_force else ([],):
            assert said in _refused(here, [*arguments, *force]), output


@pytest.mark.parametrize(
    ("output", "report"),
    [
        ("x.safetensors", "x.safetensors"),
        ("x.pt", "./x.pt"),
        ("x.pt", "x.pt.provenance.json"),
        ("x.npz", "link.html"),
        ("x.safetensors.index.json", "x.safetensors.index.json.provenance.json"),
    ],
)
def test_two_outputs_of_a_run_are_two_files(here: Path, output: str, report: str) -> None:
    (here / "link.html").symlink_to(here / output)
    arguments = ["sane-init", "-o", output, "--report", report, "--force"]
    assert "written twice" in _refused(here, arguments)


def test_the_first_task_of_a_pruned_network_is_an_output_too(here: Path) -> None:
    arguments = ["sane-init", "net.pt", "--factory", "a:b", "--pruned", "-o", "x.pt"]
    (here / "x.first-task.safetensors").write_text("precious")
    assert "x.first-task.safetensors: it exists" in _refused(here, arguments)
    report = ["--report", "x.first-task.safetensors", "--force"]
    assert "written twice" in _refused(here, [*arguments, *report])


@pytest.mark.parametrize(
    ("output", "beside"),
    [
        ("x.pt", "x.pt.provenance.json"),
        ("x.npz", "x.npz.provenance.json"),
        ("x.safetensors.index.json", "x-00001-of-00001.safetensors"),
        ("x.onnx", "x.onnx.data"),
        ("x.onnx", "x.onnx.provenance.json"),
    ],
)
def test_files_beside_an_output_are_not_replaced_unasked(
    here: Path, output: str, beside: str
) -> None:
    if output.endswith(".onnx"):
        pytest.importorskip("onnx")
    (here / beside).write_text("precious")
    assert f"{beside}: it exists" in _refused(here, ["sane-init", "-o", output])


@pytest.mark.parametrize("name", ["x.pt", "x.npz", "x.safetensors.index.json"])
def test_force_reaches_the_files_beside_an_output(tmp_path, name: str) -> None:
    host, target = Host.installed(), tmp_path / name
    shard = tmp_path / "x-00001-of-00001.safetensors"
    beside = [Path(f"{target}.provenance.json"), *([shard] if "index" in name else [])]
    for path in beside:
        path.write_text("precious")
    for call in (host.save, host.check_save):
        with pytest.raises(UsageError, match="it exists"):
            call(_graph(), target)
        assert not target.exists()
        assert all(path.read_text() == "precious" for path in beside)
    host.save(_graph(), target, metadata={"a": 1}, force=True)
    assert json.loads(beside[0].read_text()) == {"a": 1}
    assert host.open(target).size == _graph().size


class _Older:
    """A plugin of others that takes no metadata: the host writes them beside its file."""

    from sane_plugins import hookimpl

    @hookimpl
    def sane_save(self, graph, target):
        if target.suffix != ".xyz":
            return None
        target.write_text(graph.source)
        return target


def test_what_the_host_writes_beside_a_plugins_file_is_planned(tmp_path) -> None:
    host, target = Host.installed(), tmp_path / "x.xyz"
    host.register(_Older(), "older")
    beside = tmp_path / "x.xyz.provenance.json"
    beside.write_text("precious")
    with pytest.raises(UsageError, match=r"x\.xyz\.provenance\.json: it exists"):
        host.save(_graph(), target, metadata={"a": 1})
    assert not target.exists()
    host.save(_graph(), target, metadata={"a": 1}, force=True)
    assert json.loads(beside.read_text()) == {"a": 1}


@pytest.mark.parametrize("end", [".state", ".jsonl", ".png"])
def test_pretraining_replaces_nothing_of_its_own_names(here: Path, end: str) -> None:
    (here / f"x.safetensors{end}").write_text("precious")
    sentence = _refused(here, ["pretrain", "zoo", "-o", "x.safetensors"])
    assert f"x.safetensors{end}" in sentence
    assert "--force" in sentence


def test_a_graph_is_not_written_over_the_file_that_it_is_read_from(tmp_path) -> None:
    host, path = Host.installed(), save_safetensors(_graph(), tmp_path / "net.safetensors")
    before, graph = path.read_bytes(), host.open(path)
    for call in (host.save, host.check_save):
        with pytest.raises(UsageError, match="read by the same run"):
            call(graph, path, force=True)
    index = save_sharded(_graph(), tmp_path / "big.safetensors.index.json", limit=40)
    shard = min(tmp_path.glob("big-*"))
    for target in (index, shard):
        with pytest.raises(UsageError, match="read by the same run"):
            host.save(host.open(index), target, force=True)
    assert path.read_bytes() == before


def test_an_onnx_model_is_not_written_over_its_own_values(tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    weight = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    value = onnx.helper.make_tensor_value_info
    ends = (value(name, onnx.TensorProto.FLOAT, (1, 64)) for name in ("x", "y"))
    graph = onnx.helper.make_graph([node], "g", [next(ends)], [next(ends)], [weight])
    path = tmp_path / "in.onnx"
    onnx.save_model(
        onnx.helper.make_model(graph), path, save_as_external_data=True, location="out.onnx.data"
    )
    host, before = Host.installed(), _contents(tmp_path)
    opened = host.open(path)
    for target in ("out.onnx", "in.onnx"):
        for call in (host.save, host.check_save):
            with pytest.raises(UsageError, match="read by the same run"):
                call(opened, tmp_path / target, force=True)
    assert _contents(tmp_path) == before
    done = CliRunner().invoke(
        sane_plugins, ["embed", str(path), "-o", str(tmp_path / "out.onnx.data"), "--force"]
    )
    assert done.exit_code == 2, done.output
    assert _contents(tmp_path) == before
    (tmp_path / "new.onnx.data").write_text("precious")
    with pytest.raises(UsageError, match=r"new\.onnx\.data: it exists"):
        host.save(opened, tmp_path / "new.onnx")
    host.save(opened, tmp_path / "new.onnx", force=True)
    assert torch.equal(host.open(tmp_path / "new.onnx").state_dict()["w"], torch.ones(64, 64))


def test_a_plan_takes_any_names_and_ignores_sources_that_are_no_files(tmp_path) -> None:
    path = tmp_path / "new"
    require_outputs([path, str(tmp_path / "other")], sources=["a:b", "\0", "x" * 999, path, ""])
    for name in ("a\0b", "x" * 999, "\ud800"):
        with pytest.raises(UsageError):
            require_outputs([tmp_path / name])


def test_a_folder_without_the_right_to_write(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(SourceError, match=r"new: it cannot be written \(Permission denied\)"):
        require_outputs([tmp_path / "new"])


def test_the_files_of_a_torchvision_task_are_sources(here: Path) -> None:
    arguments = ["sane-init", "--task", "torchvision:MNIST:task", "-o", "task/images.npz"]
    assert "read by the same run" in _refused(here, [*arguments, "--force"])


# Zoos.


@pytest.mark.parametrize(
    "arguments",
    ["zoo train -o file", "zoo import task.json -o file", "zoo add task -o file"],
)
@pytest.mark.parametrize("deeper", ["", "/zoo"])
def test_a_zoos_folder_is_a_folder(here: Path, arguments: str, deeper: str) -> None:
    (here / "file").write_text("precious")
    assert "folder" in _refused(here, (arguments + deeper).split())


def test_a_zoo_is_not_made_where_its_sources_lie(here: Path) -> None:
    for arguments in ("zoo train --task task -o task", "zoo add task -o task"):
        assert "read by the same run" in _refused(here, arguments.split())


@pytest.mark.parametrize("name", ["weights", "index", "other"])
def test_importing_a_zoo_beside_itself_keeps_the_published_files(tmp_path, name: str) -> None:
    record = {"model": "m", "epoch": 0, "act": "relu", "p": 0.0}
    from sane_plugins.architectures import small_cnn

    tensors = {f"m/0/{key}": value for key, value in small_cnn(1, 10).state_dict().items()}
    save_file(tensors, tmp_path / f"{name}.safetensors")
    (tmp_path / f"{name}.json").write_text(json.dumps([record]))
    mine = [tmp_path / "weights-mine.safetensors", tmp_path / "weights-0.safetensors.backup"]
    for path in mine:
        path.write_text("precious")
    before = _contents(tmp_path)
    done = CliRunner().invoke(
        sane_plugins,
        ["zoo", "import", str(tmp_path / f"{name}.json"), "-o", str(tmp_path), "--force"],
    )
    assert done.exit_code == (0 if name == "other" else 2), done.output
    after = _contents(tmp_path)
    assert {key: after[key] for key in before} == before


def test_links_in_a_strangers_zoo_lead_nowhere(tmp_path) -> None:
    state = {"weight": torch.zeros(4, 4), "bias": torch.zeros(4)}
    entry = zoo.Entry(network="b", checkpoint="0", factory={}, properties={})
    (first,) = zoo.write_zoo(tmp_path / "whole", "x", [(entry, state)]).folder.glob("weights-*")
    folder, victim = _zoo(tmp_path / "zoo"), tmp_path / "victim"
    victim.write_bytes((folder / "index.jsonl").read_bytes())
    before = victim.read_bytes()
    (folder / "index.jsonl").unlink()
    for name in ("index.jsonl", first.name):
        (folder / name).symlink_to(victim)
    zoo.set_properties(folder, {"a/0": {"p": 1.0}})
    zoo.write_zoo(folder, "x", [(entry, state)], force=True)
    assert victim.read_bytes() == before
    assert zoo.Zoo.open(folder).entries[0].network == "b"


def test_training_a_zoo_deletes_no_folder_of_the_user(here: Path) -> None:
    mine = here / "new.state"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    for option in ([], ["--force"], ["--resume"]):
        assert "new.state" in _refused(here, ["zoo", "train", "-o", "new", *option])


def test_writers_of_one_zoo_at_once_lose_nothing(tmp_path) -> None:
    folder = _zoo(tmp_path / "zoo")
    names = [f"p{i}" for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: zoo.set_properties(folder, {"a/0": {name: 1.0}}), names))
    (entry,) = zoo.Zoo.open(folder).entries
    assert entry.properties == {"test_accuracy": 0.5, **dict.fromkeys(names, 1.0)}
    assert zoo.Zoo.open(folder).state_dict(entry).keys() == {"weight", "bias"}


_FULL = """
import resource, sys
from click.testing import CliRunner
from sane_plugins.cli.initialize import main as sane_init
from sane_plugins.cli.main import main as sane_plugins
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
for line in sys.argv[1:]:
    command, rest = (sane_init, line[9:]) if line.startswith("sane-init") else (sane_plugins, line)
    done = CliRunner().invoke(command, rest.split())
    print(done.exit_code, *done.stderr.splitlines())
"""


def test_a_full_disk_is_told_of_the_users_file_by_every_command(tmp_path) -> None:
    pytest.importorskip("resource")
    from sane_plugins.architectures import small_cnn

    for i in range(2):
        save_safetensors(from_module(small_cnn(1, 10)), tmp_path / f"net-{i}.safetensors")
    factory = {"name": "small_cnn", "channels_in": 1, "classes": 10, "act": "relu", "dropout": 0.0}
    state = small_cnn(1, 10).state_dict()
    entries = (
        zoo.Entry(network=f"{i}", checkpoint="0", factory=factory, properties={}) for i in range(4)
    )
    zoo.write_zoo(tmp_path / "zoo", "x", ((entry, state) for entry in entries))
    before = _contents(tmp_path)
    lines = {
        "embed net-0.safetensors -o e.safetensors": "e.safetensors",
        "embed net-0.safetensors net-1.safetensors -o e.safetensors": "e.safetensors",
        "zoo add . -o added": "added/weights-",
        "sane-init --no-score -o x.pt": "x.pt",
        "pretrain zoo -o s.safetensors --steps 2 --batch 4 --width 32 --layers 1"
        " --heads 2": "s.safetensors.state",
    }
    done = run_python("-c", _FULL, *lines, cwd=tmp_path)
    told = done.stdout.splitlines()
    assert len(told) == len(lines), (done.stdout, done.stderr)
    for line, place in zip(told, lines.values(), strict=True):
        assert line.startswith("1 "), line
        assert f" Error: {place}" in line, line
        assert "cannot be written (File too large)" in line, line
        assert ".sane-plugins-" not in line, line
    assert _contents(tmp_path) == before


def test_wrong_usage_is_said_quickly(tmp_path) -> None:
    run(
        *("embed", "none.safetensors", "-o", "x/y.safetensors"), cwd=tmp_path
    ).require_small().require_sentence(2)
    assert not list(tmp_path.iterdir())
