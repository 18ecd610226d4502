"""Folders of checkpoints become zoos: each network once, nothing lost, whatever form it comes in."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import nn

from sane_plugins.architectures import resnet, small_cnn
from sane_plugins.cli.main import main
from sane_plugins.errors import UsageError, ZooError
from sane_plugins.formats import save_sharded
from sane_plugins.host import Host
from sane_plugins.tasks import load_task
from sane_plugins.zoo import (
    Added,
    AddOptions,
    Entry,
    EvaluateOptions,
    Zoo,
    add_networks,
    evaluate_zoo,
    import_published,
    join_table,
    read_table,
    set_properties,
    write_zoo,
)
from sane_plugins.zoo.run_names import name_by_file, name_by_number, name_by_pattern

CNN = {"name": "small_cnn", "channels_in": 1, "classes": 10}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.installed()


@pytest.fixture
def nets(tmp_path) -> Path:
    """Save two runs of three epochs, one of them twice, as a folder of files."""
    torch.manual_seed(0)
    folder = tmp_path / "nets"
    for run in ("a", "b"):
        (folder / run).mkdir(parents=True)
        for epoch in range(3):
            torch.save(small_cnn().state_dict(), folder / run / f"cnn_epoch{epoch}.pt")
    state = torch.load(folder / "a" / "cnn_epoch2.pt")
    save_file(state, folder / "best.safetensors")
    (folder / "notes.txt").write_text("trained on a Sunday")
    return folder


def _add(host: Host, folder: Path, out: Path, **options: object) -> Added:
    return add_networks(folder, out, host.open, AddOptions(**options))


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def test_runs_equal_files_and_others_are_told_apart(host, nets, tmp_path) -> None:
    done = _add(host, nets, tmp_path / "zoo", factory=CNN)
    zoo = Zoo.open(tmp_path / "zoo")
    assert zoo.networks == ("nets/a/cnn", "nets/b/cnn")
    assert len(zoo) == 6 == len({entry.digest for entry in zoo.entries})
    assert done.equal == {"nets/best.safetensors": "nets/a/cnn_epoch2.pt"}
    assert list(done.unread) == ["nets/notes.txt"]
    epochs = [e.properties["epoch"] for e in zoo.entries if e.network == "nets/b/cnn"]
    assert epochs == [0, 1, 2]
    stored = torch.load(nets / "b" / "cnn_epoch1.pt")
    entry = next(e for e in zoo.entries if e.source == "nets/b/cnn_epoch1.pt")
    for read in (zoo.state_dict(entry), zoo.module(entry).state_dict()):
        assert all(torch.equal(read[key], value) for key, value in stored.items())
    assert zoo.graph(entry).has_topology


def test_adding_again_adds_nothing_and_adding_more_adds_that(host, nets, tmp_path) -> None:
    _add(host, nets, tmp_path / "zoo")
    before = {p.name: p.read_bytes() for p in (tmp_path / "zoo").iterdir()}
    done = _add(host, nets, tmp_path / "zoo")
    assert not done.added
    assert {p.name: p.read_bytes() for p in (tmp_path / "zoo").iterdir()} == before
    # Another network of a known name is lost as little as what it is named like.
    torch.save(small_cnn().state_dict(), nets / "a" / "cnn_epoch2.pth")
    assert _add(host, nets, tmp_path / "zoo").added == ["nets/a/cnn_epoch2.pth"]
    zoo = Zoo.open(tmp_path / "zoo")
    assert len(zoo) == len({entry.key for entry in zoo.entries}) == 7
    assert all(zoo.graph(entry).size == 2464 for entry in zoo.entries)


def test_a_factory_given_later_is_taken(host, nets, tmp_path) -> None:
    _add(host, nets, tmp_path / "zoo")
    zoo = Zoo.open(tmp_path / "zoo")
    with pytest.raises(ZooError, match="--factory"):
        zoo.module(zoo.entries[0])
    assert zoo.graph(zoo.entries[0]).notes[0].startswith("topology inferred")
    wrong = _add(host, nets, tmp_path / "zoo", factory={**CNN, "classes": 4})
    assert len(wrong.unbuilt) == 7
    assert not wrong.given_factory
    assert len(_add(host, nets, tmp_path / "zoo", factory=CNN).given_factory) == 6
    zoo = Zoo.open(tmp_path / "zoo")
    assert [zoo.module(entry) for entry in zoo.entries]


def test_names_alone_decide_what_one_run_is(host, nets, tmp_path) -> None:
    _add(host, nets, tmp_path / "alone", run_name=name_by_file)
    assert len(Zoo.open(tmp_path / "alone").networks) == 6
    _add(host, nets, tmp_path / "found", run_name=name_by_pattern(r"nets/(?P<network>\w)/"))
    assert {"a", "b"} <= set(Zoo.open(tmp_path / "found").networks)
    with pytest.raises(UsageError, match="regular expression"):
        name_by_pattern("(")


@pytest.mark.parametrize(
    ("source", "network", "checkpoint"),
    [
        ("d/resnet20-12fca82f.th", "d/resnet20-12fca82f", "0"),
        ("d/net-epoch_3.pt", "d/net", "3"),
        ("d/run1/epoch=3-step=500.ckpt", "d/run1", "3-500"),
        ("d/checkpoint-500/model.safetensors", "d/model", "500"),
        ("d/model_step_100.safetensors.index.json", "d/model", "100"),
        ("d/superstep3.pt", "d/superstep3", "0"),
        ("d/12.pt", "d/12", "0"),
    ],
)
def test_numbers_of_epochs_are_read_from_names(source, network, checkpoint) -> None:
    found = name_by_number(source)
    assert (found.network, found.checkpoint) == (network, checkpoint)


def test_a_pattern_may_name_checkpoints() -> None:
    found = name_by_pattern(r"(?P<network>net\d+)_(?P<checkpoint>\w+)")("d/net7_last.pt")
    assert (found.network, found.checkpoint) == ("net7", "last")


def test_real_checkpoints_of_many_forms(sane_data, host, tmp_path) -> None:
    pytest.importorskip("onnx")
    folder = tmp_path / "wild"
    shutil.copytree(sane_data / "checkpoints", folder / "checkpoints")
    shutil.copytree(sane_data / "onnx" / "github_wild", folder / "onnx")
    done = _add(host, folder, tmp_path / "zoo")
    zoo = Zoo.open(tmp_path / "zoo")
    lenets = [name for name in [*done.equal, *done.equal.values()] if "lenet" in name]
    assert sorted(name.rpartition(".")[2] for name in lenets) == ["onnx", "pth"]
    assert len(zoo) == len(done.added) == 16
    assert len({entry.form for entry in zoo.entries}) == 16
    assert [name.rpartition("/")[2] for name in done.unread] == ["LICENSE"]
    for entry in zoo.entries:
        original, read = host.open(folder.parent / entry.source), zoo.graph(entry)
        assert [p.key for p in read.params] == [p.key for p in original.params]
        assert [p.axis for p in read.params] == [p.axis for p in original.params]
        for key, value in original.state_dict().items():
            assert read.tensors[key].dtype == value.dtype
            assert torch.equal(read.tensors[key], value)


def test_a_resnet_of_a_file_runs_as_recorded(sane_data, host, tmp_path) -> None:
    folder = tmp_path / "nets"
    folder.mkdir()
    name = "resnet20-12fca82f.th"
    shutil.copy(sane_data / "checkpoints" / "akamaster_pytorch_resnet_cifar10" / name, folder)
    _add(host, folder, tmp_path / "zoo", factory={"name": "resnet", "depth": 20})
    zoo = Zoo.open(tmp_path / "zoo")
    (entry,) = zoo.entries
    assert entry.factory
    assert zoo.graph(entry).has_topology
    assert zoo.module(entry).state_dict().keys() >= {"bn1.running_mean"}


def test_shards_and_zoos_are_read_as_what_they_are(host, nets, tmp_path) -> None:
    graph = host.open(nets / "a" / "cnn_epoch0.pt")
    folder = tmp_path / "more"
    folder.mkdir()
    changed = graph.replace({p.key: graph.tensors[p.key] + 1 for p in graph.params})
    save_sharded(changed, folder / "big.safetensors.index.json", limit=4000)
    source = write_zoo(
        folder / "old",
        "old",
        [
            (
                Entry(network="7", checkpoint="1", factory=CNN, properties={"test_accuracy": 0.5}),
                small_cnn().state_dict(),
            )
        ],
    )
    done = _add(host, folder, tmp_path / "zoo")
    assert done.added == ["old/7/1", "more/big.safetensors.index.json"]
    assert not done.unread
    first = Zoo.open(tmp_path / "zoo").entries[0]
    assert first.network == "old/7"
    assert first.properties["test_accuracy"] == 0.5
    assert first.digest == source.entries[0].digest


def test_damaged_and_foreign_files_do_not_stop_the_others(host, nets, tmp_path) -> None:
    whole = (nets / "b" / "cnn_epoch0.pt").read_bytes()
    (nets / "b" / "cnn_epoch0.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"weights": torch.ones(3, dtype=torch.int64)}, nets / "counts.pt")
    done = _add(host, nets, tmp_path / "zoo")
    assert len(done.added) == 5
    assert {*done.unread} == {"nets/b/cnn_epoch0.pt", "nets/counts.pt", "nets/notes.txt"}
    assert all(reason.endswith(".") and "\n" not in reason for reason in done.unread.values())


def test_a_folder_without_networks_is_refused(host, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ZooError, match="no files"):
        _add(host, tmp_path / "empty", tmp_path / "zoo")
    with pytest.raises(UsageError, match="does not exist"):
        _add(host, tmp_path / "none", tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_counters_and_ties_are_kept(tmp_path, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    network = resnet(channels_in=1, depth=8, width=4).to(dtype)
    network(torch.randn(2, 1, 8, 8, dtype=dtype))  # counts batches
    factory = {"name": "resnet", "channels_in": 1, "depth": 8, "width": 4}
    entry = Entry(network="r", checkpoint="0", factory=factory, properties={})
    zoo = write_zoo(tmp_path / "zoo", "zoo", [(entry, network.state_dict())])
    read = zoo.entries[0]
    for state in (
        zoo.state_dict(read),
        zoo.module(read).state_dict(),
        dict(zoo.graph(read).tensors),
    ):
        for key, value in network.state_dict().items():
            assert state[key].dtype == value.dtype
            assert torch.equal(state[key], value)
    assert {p.dtype for p in zoo.graph(read).params} == {dtype}
    assert int(zoo.state_dict(read)["bn1.num_batches_tracked"]) == 1


def test_tied_tensors_stay_tied(host, tmp_path) -> None:
    first, last = nn.Linear(4, 4), nn.Linear(4, 4)
    last.weight = first.weight
    (tmp_path / "nets").mkdir()
    torch.save(nn.Sequential(first, last).state_dict(), tmp_path / "nets" / "tied.pt")
    _add(host, tmp_path / "nets", tmp_path / "zoo")
    zoo = Zoo.open(tmp_path / "zoo")
    graph = zoo.graph(zoo.entries[0])
    assert graph.ties == {"1.weight": "0.weight"}
    assert graph.size == 24


@pytest.mark.slow
def test_a_killed_add_goes_on(nets, tmp_path) -> None:
    """Whenever it is killed, the zoo is whole or none, and the same command finishes it."""
    for i in range(80):
        torch.save(small_cnn().state_dict(), nets / f"net{i}.pt")
    code = (
        "import sys; from pathlib import Path; import sane_plugins.zoo.add as c;"
        "from sane_plugins.host import Host; c._COMMIT_SECONDS = 0.02; print('ready', flush=True);"
        "c.add_networks(Path(sys.argv[1]), Path(sys.argv[2]), Host.installed().open, c.AddOptions())"
    )
    command = [sys.executable, "-c", code, str(nets), str(tmp_path / "zoo")]
    seen = []
    for wait in (0.1, 0.2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(wait)
            os.kill(process.pid, signal.SIGKILL)
        if (tmp_path / "zoo" / "index.jsonl").exists():
            zoo = Zoo.open(tmp_path / "zoo")
            assert all(zoo.state_dict(entry) for entry in zoo.entries)
            seen.append(len(zoo))
    assert seen == sorted(seen)
    subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT)
    zoo = Zoo.open(tmp_path / "zoo")
    assert len({entry.digest for entry in zoo.entries}) == len(zoo) == 86
    left = {path.name for path in (tmp_path / "zoo").iterdir()}
    assert left == {"index.jsonl", *(entry.file for entry in zoo.entries)}


def test_another_process_changing_the_zoo_is_noticed(host, nets, tmp_path) -> None:
    _add(host, nets / "a", tmp_path / "zoo")
    index = tmp_path / "zoo" / "index.jsonl"

    def opener(path: Path) -> object:
        index.write_text(index.read_text().replace('"finite": true', '"finite":  true'))
        return host.open(path)

    with pytest.raises(ZooError, match="another process"):
        add_networks(nets / "b", tmp_path / "zoo", opener, AddOptions())  # type: ignore[arg-type]
    assert len(Zoo.open(tmp_path / "zoo")) == 3


def test_measured_as_recorded(sane_data, tmp_path) -> None:
    """A published zoo's accuracies are of 4,000 test images drawn at random: they agree as such draws do."""
    published = import_published(sane_data / "zoos" / "mnist-cnn.json")
    some = published.where(lambda e: (e.network, e.checkpoint) in {("0", "0"), ("30", "12")})
    items = [(entry, published.state_dict(entry)) for entry in some.entries]
    zoo = write_zoo(tmp_path / "zoo", "mnist", items)
    task = load_task(sane_data / "datasets" / "mnist.npz")
    done = evaluate_zoo(zoo.folder, task, EvaluateOptions(images=10_000, force=True))
    assert done.measured == len(zoo)
    again = Zoo.open(zoo.folder)
    for entry, old in zip(again.entries, some.entries, strict=True):
        found, told = (float(e.properties["test_accuracy"]) for e in (entry, old))
        deviation = (found * (1 - found) / 4000 * (1 - 4000 / 10_000)) ** 0.5
        assert found == pytest.approx(told, abs=4 * deviation)
        assert entry.properties["act"] == old.properties["act"]
    assert evaluate_zoo(zoo.folder, task, EvaluateOptions()).kept == len(zoo)


def test_measured_as_when_trained(tmp_path) -> None:
    from sane_plugins.zoo_training import TrainingImages, ZooOptions, train_zoo

    task = load_task("digits")
    images = TrainingImages(
        x_train=task.x_train, y_train=task.y_train, x_test=task.x_test, y_test=task.y_test
    )
    options = ZooOptions(
        name="digits",
        dataset="digits",
        architecture="resnet",
        settings={"depth": 8, "width": 4},
        networks=2,
        epochs=1,
        keep=(0, 1),
    )
    trained = train_zoo(images, options, tmp_path / "zoo")
    evaluate_zoo(trained.folder, task, EvaluateOptions(force=True))
    for old, new in zip(trained.entries, Zoo.open(trained.folder).entries, strict=True):
        for name in ("test_accuracy", "train_accuracy", "gap", "test_loss", "train_loss"):
            told = float(old.properties[name])
            assert float(new.properties[name]) == pytest.approx(told, abs=1e-6, rel=1e-4)


def test_evaluation_lists_what_cannot_run_and_keeps_what_was_there(host, nets, tmp_path) -> None:
    folder = tmp_path / "zoo"
    _add(host, nets, folder, factory=CNN)
    torch.save(nn.Linear(3, 2).state_dict(), nets / "foreign.pt")
    _add(host, nets, folder)
    zoo = Zoo.open(folder)
    set_properties(folder, {zoo.entries[0].key: {"test_accuracy": 2.0, "train_accuracy": 3.0}})
    task = load_task("digits").resized(28)
    done = evaluate_zoo(folder, task, EvaluateOptions(images=100))
    assert (done.measured, list(done.skipped)) == (6, ["nets/foreign/0"])
    first, second = Zoo.open(folder).entries[:2]
    assert first.properties["test_accuracy"] == 2.0
    assert first.properties["gap"] == 1.0
    assert 0 <= float(second.properties["test_accuracy"]) <= 1
    evaluate_zoo(folder, task, EvaluateOptions(images=100, force=True))
    assert Zoo.open(folder).entries[0].properties["test_accuracy"] != 2.0
    wrong = evaluate_zoo(folder, load_task("digits"), EvaluateOptions(force=True))
    assert len(wrong.skipped) == 7


def test_names_that_differ_by_more_than_a_number_are_other_networks(host, tmp_path) -> None:
    """A trailing stroke, and what has no number beside what has one, are no checkpoints of one run."""
    (tmp_path / "nets").mkdir()
    for i, name in enumerate(("net", "net-", "_net", "net-epoch1", "net-epoch2", "net_step5")):
        torch.manual_seed(i)
        torch.save(small_cnn().state_dict(), tmp_path / "nets" / f"{name}.pt")
    for _ in range(2):  # adding again changes nothing
        _add(host, tmp_path / "nets", tmp_path / "zoo")
        zoo = Zoo.open(tmp_path / "zoo")
        assert len(zoo) == 6
        together = {e.network for e in zoo.entries if "epoch" in e.source}
        assert len(together) == 1
        assert len(zoo.networks) == 5
        assert {"nets/net-", "nets/_net"} <= set(zoo.networks)


def test_images_are_prepared_as_is_said_and_the_zoo_keeps_how(sane_data, tmp_path) -> None:
    published = import_published(sane_data / "zoos" / "mnist-cnn.json")
    best = published.best("test_accuracy", 1)
    items = [(e, published.state_dict(e)) for e in best.entries]
    task = load_task(sane_data / "datasets" / "mnist.npz")

    def measure(normalize: str | None) -> tuple[float, str]:
        zoo = write_zoo(tmp_path / "zoo", "zoo", items, force=True)
        options = EvaluateOptions(images=300, force=True, normalize=normalize)
        assert evaluate_zoo(zoo.folder, task, options).measured == 1
        found = Zoo.open(zoo.folder).entries[0].properties
        return float(found["test_accuracy"]), str(found["preparation"])

    guessed, how = measure(None)
    assert how.endswith("(guessed)")
    means = how.removesuffix(" (guessed)")
    assert measure(means) == (guessed, means)
    assert measure("task") == (guessed, means)
    dark, how = measure("0.9/0.05")
    assert how == "0.9/0.05"
    assert dark < guessed
    assert measure("none")[1] == "0/1"
    set_properties(tmp_path / "zoo", {best.entries[0].key: {"preparation": "0.9/0.05"}})
    options = EvaluateOptions(images=300, force=True)
    assert evaluate_zoo(tmp_path / "zoo", task, options).preparations == {"0.9/0.05": 1}
    for wrong in ("imagenet", "0.1", "0.1/0", "a/b", "0.1,0.2/0.3"):
        with pytest.raises(UsageError, match="--normalize"):
            measure(wrong)
    zoo = write_zoo(tmp_path / "zoo", "zoo", items, force=True)
    skipped = evaluate_zoo(zoo.folder, task, EvaluateOptions(force=True, normalize="recorded"))
    assert "preparation" in next(iter(skipped.skipped.values()))


def test_what_a_table_did_not_join_is_told(host, nets, tmp_path) -> None:
    _add(host, nets, tmp_path / "zoo")
    table = tmp_path / "own.csv"
    said = "zoo", "evaluate", tmp_path / "zoo", "--properties", table, "--json"
    table.write_text("network,score\nnets/a/cnn,1\n")
    assert json.loads(_run(*said).stdout)["not joined"] == {}
    table.write_text("network,score,other\nnets/a/cnn,2,3\n")
    assert json.loads(_run(*said).stdout)["not joined"] == {"score": 3}
    entry = next(e for e in Zoo.open(tmp_path / "zoo").entries if e.network == "nets/a/cnn")
    assert (entry.properties["score"], entry.properties["other"]) == (1, 3)
    assert json.loads(_run(*said, "--force").stdout)["not joined"] == {}


def test_a_table_of_properties_is_joined(host, nets, tmp_path) -> None:
    _add(host, nets, tmp_path / "zoo")
    zoo = Zoo.open(tmp_path / "zoo")
    table = tmp_path / "own.csv"
    table.write_text(
        "file,score,kind,ok,empty\ncnn_epoch1.pt,1,x,true,\na/cnn_epoch1.pt,0.5,y,true,\n"
    )
    found, lost = join_table(zoo.entries, read_table(table))
    assert found == {"nets/a/cnn/1": {"score": 0.5, "kind": "y", "ok": True}}
    assert lost == ["cnn_epoch1.pt"]
    lines = tmp_path / "own.jsonl"
    lines.write_text('{"network": "nets/b/cnn", "depth": 3}\n{"network": "none", "depth": 1}\n')
    found, lost = join_table(zoo.entries, read_table(lines))
    assert {key: row["depth"] for key, row in found.items()} == {
        f"nets/b/cnn/{epoch}": 3 for epoch in range(3)
    }
    assert lost == ["none"]
    for text in ("", "a,b\n1,2\n"):
        table.write_text(text)
        with pytest.raises(ZooError, match="'file'"):
            read_table(table)


def test_pretraining_reads_a_mixed_zoo(host, nets, tmp_path) -> None:
    from sane_plugins.autoencoder import SANEConfig
    from sane_plugins.pretraining.permuted_dataset import build_datasets
    from sane_plugins.progress import silent

    _add(host, nets / "a", tmp_path / "zoo", factory=CNN)
    torch.save(resnet(depth=8, width=4).state_dict(), nets / "resnet.pt")
    torch.save({"w": torch.randn(300)}, nets / "vector.pt")
    _add(host, nets, tmp_path / "zoo")
    zoo = Zoo.open(tmp_path / "zoo")
    datasets = build_datasets([zoo], SANEConfig(), 2, torch.Generator().manual_seed(0), silent)
    assert sum(len(dataset.values) for dataset in datasets) == len(zoo)


def test_commands_tell_what_became_of_each_file(nets, tmp_path) -> None:
    def run(*arguments: object) -> Result:
        return CliRunner().invoke(main, [*map(str, arguments)])

    zoo = tmp_path / "zoo"
    done = run(
        "zoo", "add", nets, "-o", zoo, "--factory", "small-cnn", "--set", "classes=10", "--json"
    )
    told = json.loads(done.stdout)
    assert (done.exit_code, len(told["added"]), len(told["equal"]), len(told["unread"])) == (
        0,
        6,
        1,
        1,
    )
    shown = json.loads(run("zoo", "show", zoo, "--json").stdout)
    assert (shown["networks"], shown["checkpoints"], shown["without_factory"]) == (2, 6, 0)
    assert [x["parameters"] for x in shown["architectures"]] == [2464]
    assert {entry.factory["name"] for entry in Zoo.open(zoo).entries} == {"small_cnn"}
    done = run(
        "zoo", "evaluate", zoo, "--task", "digits", "--size", "28", "--images", "50", "--json"
    )
    assert json.loads(done.stdout)["measured"] == 6
    for arguments, told, code in (
        (("zoo", "evaluate", zoo), "--task", 2),
        (("zoo", "evaluate", tmp_path, "--task", "digits"), "zoo import", 1),
        (("zoo", "evaluate", zoo, "--task", "digits", "--force"), "none of its 6 networks", 1),
        (("zoo", "add", nets, "-o", zoo, "--factory", "no_such:function"), "imported", 1),
        (("zoo", "add", nets, "-o", zoo, "--set", "a=1"), "--factory", 2),
        (("zoo", "add", nets / "none", "-o", zoo), "does not exist", 2),
    ):
        done = run(*arguments)
        assert done.exit_code == code, done.stderr
        assert told in done.stderr
        assert "Traceback" not in done.stderr
