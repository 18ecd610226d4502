"""The commands as a user meets them: results, clear errors, exit codes, nothing lost."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

from sane_plugins.architectures import resnet, small_cnn
from sane_plugins.cli.initialize import main as sane_init
from sane_plugins.cli.main import main as sane_plugins


@pytest.fixture
def task(tmp_path):
    """Write a tiny task of 28x28 images whose brightness tells the class."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = rng.integers(0, 40, (120, 28, 28)) + 60 * y[:, None, None]
    arrays = {
        "x_train": x.astype(np.uint8),
        "y_train": y,
        "x_test": x.astype(np.uint8),
        "y_test": y,
    }

    def write(name: str = "task", **changes):
        path = tmp_path / f"{name}.npz"
        np.savez(path, **{**arrays, **changes})
        return path

    return write


def _run(command, *arguments: object):
    return CliRunner().invoke(command, [str(a) for a in arguments])


def _init(task, output, *more: object):
    return _run(sane_init, "--task", task, "-o", output, "--samples", 2, "--keep", 1, *more)


@pytest.mark.parametrize("command", ["initialize", "main"])
def test_help_does_not_import_torch(command: str) -> None:
    code = (
        f"import sys; from sane_plugins.cli.{command} import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'sklearn', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout


def test_sane_init_writes_what_it_says(task, tmp_path) -> None:
    done = _init(task(), tmp_path / "out.safetensors", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    chosen = [row for row in told["rows"] if row["chosen"]]
    assert len(chosen) == 1
    assert chosen[0]["after"] == max(row["after"] or 0 for row in told["rows"])
    assert told["chosen"] in chosen[0]["kind"]
    assert {"sane", "default"} <= {row["kind"] for row in told["rows"]}
    network = small_cnn(1, 3)
    network.load_state_dict(load_file(told["output"]))


def test_same_seed_same_bytes(task, tmp_path) -> None:
    path = task()
    for name in ("a", "b"):
        assert _init(path, tmp_path / f"{name}.safetensors", "--seed", 3).exit_code == 0
    _init(path, tmp_path / "c.safetensors", "--seed", 4)
    a, b, c = ((tmp_path / f"{x}.safetensors").read_bytes() for x in "abc")
    assert a == b
    assert a != c


def test_a_checkpoint_with_its_factory(task, tmp_path) -> None:
    torch.save(small_cnn(1, 10).state_dict(), tmp_path / "net.pt")
    factory = "sane_plugins.architectures.families:small_cnn"
    done = _init(task(), tmp_path / "out.pt", tmp_path / "net.pt", "--factory", factory)
    assert done.exit_code == 0, done.stderr
    small_cnn(1, 3).load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True))


@pytest.mark.parametrize("classes", [3, 10])
def test_a_checkpoint_that_is_recognised(classes: int, task, tmp_path) -> None:
    trained = resnet(classes=classes, depth=8, width=4)
    state = {f"module.{key}": value for key, value in trained.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "net.th")
    output = tmp_path / "o.pt"
    done = _init(
        task(), output, tmp_path / "net.th", "--no-score", "--prompts", tmp_path / "net.th"
    )
    assert done.exit_code == 0, done.stderr
    assert "net.th is recognised as resnet,depth=8,width=4,shortcut=pad" in done.stderr
    made = resnet(classes=3, depth=8, width=4)
    made.load_state_dict(torch.load(output, weights_only=True))


def test_a_checkpoint_of_an_unknown_network_needs_a_factory(task, tmp_path) -> None:
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(784, 3)).state_dict(), tmp_path / "net.pt")
    _refused(_init(task(), tmp_path / "o.pt", tmp_path / "net.pt"), "--factory", 2)


def test_a_factory_says_what_the_prompts_are(task, tmp_path) -> None:
    torch.save(small_cnn(1, 10).state_dict(), tmp_path / "prompt.pt")
    more = ["--prompts", tmp_path / "prompt.pt", "--no-score", "--factory"]
    name = "sane_plugins.architectures.families:small_cnn"
    done = _init(task(), tmp_path / "o.pt", name, *more, name)
    assert done.exit_code == 0, done.stderr
    assert f"recognised as what {name} builds" in done.stderr
    _refused(_init(task(), tmp_path / "p.pt", name, *more, "mlp"), "mlp builds differs", 1)


def test_prompts_of_the_users_own(task, tmp_path) -> None:
    torch.save(small_cnn(1, 10).state_dict(), tmp_path / "prompt.pt")
    done = _init(task(), tmp_path / "o.safetensors", "--prompts", tmp_path / "prompt.pt", "--json")
    assert done.exit_code == 0, done.stderr
    used = json.loads(done.stdout)["provenance"]["prompts"]
    assert [prompt["source"] for prompt in used] == [str(tmp_path / "prompt.pt")]


def test_an_existing_output_is_refused_before_any_work(task, tmp_path) -> None:
    output = tmp_path / "out.safetensors"
    output.write_text("precious")
    done = _run(sane_init, "--task", tmp_path / "no such task", "-o", output)
    assert done.exit_code == 2
    assert "--force" in done.stderr
    assert output.read_text() == "precious"
    assert _init(task(), output, "--force").exit_code == 0
    assert output.read_bytes() != b"precious"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"y_train": np.arange(120) % 3 + 5}, "labels"),
        ({"y_train": np.arange(120) % 3 - 1}, "labels"),
        ({"y_train": np.arange(7)}, "7 labels"),
        ({"y_train": np.zeros(120, int), "y_test": np.zeros(120, int)}, "single class"),
        ({"x_train": np.full((120, 28, 28), np.nan)}, "NaN"),
        ({"x_test": np.zeros((120, 14, 14))}, "same size"),
    ],
)
def test_bad_tasks_are_one_sentence(task, tmp_path, changes, said: str) -> None:
    _refused(_init(task(**changes), tmp_path / "out.safetensors"), said, 1)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["--task", "no-such-file.npz"], "no such file", 1),
        (["no-such-network"], "no such network", 1),
        (["--sampler", "no-such-sampler"], "kde", 2),
        (["--size", "9"], "--size", 2),
        (["--factory", "no.such:function", "prompt.pt"], "", 1),
    ],
)
def test_wrong_calls_of_sane_init(arguments, said: str, code: int, tmp_path) -> None:
    if arguments[0] == "no-such-network":
        pytest.importorskip("PIL", reason="torchvision needs it")
    done = _run(sane_init, *arguments, "-o", tmp_path / "out.safetensors")
    _refused(done, said, code)


def test_our_networks_are_named_in_either_spelling(task, tmp_path) -> None:
    for name in ("small-cnn", "small_cnn"):
        output = tmp_path / f"{name}.safetensors"
        done = _run(sane_init, name, "--task", task(), "--no-score", "-o", output)
        assert done.exit_code == 0, done.stderr
    one, other = (load_file(tmp_path / f"small{x}cnn.safetensors") for x in "-_")
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [("out.xyz", 2, ".xyz"), ("out.onnx", 1, "ONNX"), ("no-folder/out.pt", 2, "folder")],
)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    task, tmp_path, monkeypatch, name: str, code: int, said: str
) -> None:
    if name == "out.onnx":
        pytest.importorskip("onnx")
    monkeypatch.setattr("sane_plugins.host.Host.initialize", lambda *_: pytest.fail("worked"))
    _refused(_init(task(), tmp_path / name), said, code)


@pytest.mark.parametrize("name", ["missing.onnx", "missing.pt", "folder/missing"])
def test_a_missing_model_is_told_as_such(task, tmp_path, name: str) -> None:
    _refused(_init(task(), tmp_path / "out.pt", name), f"{name}: it does not exist", 1)


@pytest.mark.parametrize("kind", ["pickle", "text", "nan", "truncated", "empty", "missing"])
def test_bad_prompts_are_one_sentence(kind: str, task, tmp_path) -> None:
    if kind == "text":
        pytest.importorskip("onnx")
    prompt = _bad_source(kind, tmp_path)
    _refused(_init(task(), tmp_path / "out.pt", "--prompts", prompt), prompt.name, 1)
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [(KeyboardInterrupt(), 130, "Interrupted."), (KeyError("oops"), 1, "--debug")],
)
def test_what_nobody_expected_is_one_line(monkeypatch, raised, code: int, said: str) -> None:
    def fail(*_):
        raise raised

    monkeypatch.setattr("sane_plugins.host.Host.open", fail)
    done = _run(sane_plugins, "inspect", "net.pt")
    assert done.exit_code == code
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    if code == 1:
        assert isinstance(_run(sane_plugins, "inspect", "net.pt", "--debug").exception, KeyError)


def test_a_name_with_brackets_is_no_markup(tmp_path) -> None:
    torch.save({"a[bold].weight": torch.zeros(3, 2)}, tmp_path / "net[red].pt")
    done = _run(sane_plugins, "inspect", tmp_path / "net[red].pt")
    assert "net[red].pt" in done.stdout.replace("\n", "")
    assert "a[bold]" in done.stdout


def _refused(done, said: str, code: int) -> None:
    assert done.exit_code == code, done.output
    assert done.stderr.startswith("Error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


class _Code:
    def __reduce__(self):
        return (print, ("code ran",))


def _bad_source(kind: str, folder):
    if kind == "pickle":
        path = folder / "net.pt"
        path.write_bytes(pickle.dumps(_Code(), protocol=2))
    elif kind == "text":
        path = folder / "net.onnx"
        path.write_text("this is no network")
    elif kind == "nan":
        path = folder / "net.pth"
        torch.save({"weight": torch.full((3, 2), float("nan"))}, path)
    elif kind == "truncated":
        path = folder / "net.safetensors"
        path.write_bytes(b"\x20\0\0\0\0\0\0\0{")
    elif kind == "empty":
        path = folder / "net.pt"
        torch.save({}, path)
    else:
        path = folder / "missing.safetensors"
    return path


@pytest.mark.parametrize("kind", ["pickle", "text", "nan", "truncated", "empty", "missing"])
def test_bad_networks_are_one_sentence(kind: str, tmp_path) -> None:
    if kind == "text":
        pytest.importorskip("onnx")
    done = _run(sane_plugins, "embed", _bad_source(kind, tmp_path), "--encoder", "statistics")
    _refused(done, "", 1)
    assert "code ran" not in done.output


@pytest.fixture
def network(tmp_path):
    torch.manual_seed(0)
    torch.save(small_cnn().state_dict(), tmp_path / "net.pt")
    return tmp_path / "net.pt"


def test_inspect_counts_everything(network) -> None:
    told = json.loads(_run(sane_plugins, "inspect", network, "--json").stdout)
    assert told["parameters"] == 2464 == sum(layer["parameters"] for layer in told["layers"])
    assert told["recognized"] == ["small_cnn"]
    assert told["topology"] is True
    assert told["dtypes"] == {"float32": 2464}
    assert "2,464 parameters (float32)" in _run(sane_plugins, "inspect", network).stdout


def test_embed_writes_and_tells(network, tmp_path) -> None:
    done = _run(sane_plugins, "embed", network, "--json", "-o", tmp_path / "e.safetensors")
    embedding = json.loads(done.stdout)[str(network)]
    written = load_file(tmp_path / "e.safetensors")
    torch.testing.assert_close(written[f"{network}/embedding"], torch.tensor(embedding))
    _refused(_run(sane_plugins, "embed", network, "-o", tmp_path / "e.safetensors"), "--force", 2)


def test_one_bad_source_does_not_stop_the_others(network, tmp_path) -> None:
    done = _run(sane_plugins, "predict", network, tmp_path / "missing.pt", "--json")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert set(told[str(network)]) >= {"test_accuracy"}
    assert set(told[str(tmp_path / "missing.pt")]) == {"error"}
    assert "missing.pt" in done.stderr


def test_predictions_have_intervals_and_doubt(network, tmp_path) -> None:
    torch.save(nn.Linear(500, 400).state_dict(), tmp_path / "foreign.pt")
    done = _run(sane_plugins, "predict", network, tmp_path / "foreign.pt", "--json")
    told = json.loads(done.stdout)
    assert {"test_accuracy", "gap", "epoch"} <= set(told[str(network)])
    for estimate in told[str(network)].values():
        if "set" in estimate:  # a category
            assert estimate["value"] == estimate["set"][0]
            continue
        low, high = estimate["interval"]
        assert low <= estimate["value"] <= high
    foreign = told[str(tmp_path / "foreign.pt")]
    assert not any(estimate["in_distribution"] for estimate in foreign.values())
    assert all(estimate["value"] is None for estimate in foreign.values())


def test_an_untrained_network_is_predicted_to_be_bad(sane_data, network) -> None:
    """A fresh network of the zoo's shape is told from a trained one by its weights alone."""
    from sane_plugins.zoo import import_published

    zoo = import_published(sane_data / "zoos" / "mnist-cnn.json")
    best = network.with_name("best.pt")
    torch.save(zoo.state_dict(zoo.best("test_accuracy", 1).entries[0]), best)
    told = json.loads(_run(sane_plugins, "predict", network, best, "--json").stdout)
    values = {path: found["test_accuracy"]["value"] for path, found in told.items()}
    assert values[str(best)] > 0.8
    assert values[str(network)] < 0.4


def test_zoo_import_show_and_pretrain(sane_data, tmp_path) -> None:
    index = sane_data / "zoos" / "mnist-cnn.json"
    done = _run(sane_plugins, "zoo", "import", index, "-o", tmp_path / "zoo", "--json")
    assert json.loads(done.stdout)["networks"] == 140
    _refused(_run(sane_plugins, "zoo", "import", index, "-o", tmp_path / "zoo"), "--force", 2)
    assert "test_accuracy" in _run(sane_plugins, "zoo", "show", tmp_path / "zoo").stdout
    _refused(_run(sane_plugins, "zoo", "show", tmp_path), "zoo import", 1)


def test_list_names_plugins_and_offers() -> None:
    told = json.loads(_run(sane_plugins, "list", "--json").stdout)
    assert {"builtin", "onnx", "torchvision"} <= {plugin["name"] for plugin in told["plugins"]}
    assert {"sane", "statistics"} <= set(told["encoders"])
    only = json.loads(_run(sane_plugins, "list", "--hook", "sane_encode", "--json").stdout)
    assert [plugin["name"] for plugin in only["plugins"]] == ["builtin"]
