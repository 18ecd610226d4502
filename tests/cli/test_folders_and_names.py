"""Commands take folders and names of the hub wherever they take a file; small hostile ones end soon."""

import json
import struct
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hostile.bounded import run
from safetensors.torch import save_file

from sane_plugins.architectures import NO_TRUST, is_function_name, small_cnn
from sane_plugins.cli.initialization.inputs import InputNames, resolve_prompts
from sane_plugins.cli.initialization.targets import Target, resolve_network
from sane_plugins.cli.main import main
from sane_plugins.errors import SourceError
from sane_plugins.host import Host
from sane_plugins.tasks import load_task


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Return a cache with one network, which is in use."""
    repository = tmp_path / "hub" / "models--org--name"
    for name in ("blobs", "refs", "snapshots/abc", ".no_exist/abc"):
        (repository / name).mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    torch.manual_seed(0)
    save_file(small_cnn().state_dict(), repository / "blobs" / "f00d.safetensors")
    (repository / "blobs" / "f00d.safetensors").rename(repository / "blobs" / "f00d")
    (repository / "blobs" / "c0de").write_text(json.dumps({"model_type": "cnn"}))
    for name, blob in (("model.safetensors", "f00d"), ("config.json", "c0de")):
        (repository / "snapshots" / "abc" / name).symlink_to(f"../../blobs/{blob}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def say(*arguments: object) -> str:
    done = CliRunner().invoke(main, [*map(str, arguments)])
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_commands_read_names_and_folders(cache: Path, tmp_path) -> None:
    for source in ("hf:org/name", cache / "models--org--name"):
        told = json.loads(say("inspect", source, "--json"))
        assert "declared as cnn (transformers)" in json.dumps(told)
        assert say("predict", source)
        assert json.loads(say("embed", source, "--json"))
        out = tmp_path / f"{len([*tmp_path.iterdir()])}.safetensors"
        say("embed", source, "-o", out)
        assert out.exists()


def test_a_command_does_not_write_over_the_network_that_a_name_stands_for(cache: Path) -> None:
    blob = cache / "models--org--name" / "blobs" / "f00d"
    before = blob.read_bytes()
    target = cache / "models--org--name" / "snapshots" / "abc" / "model.safetensors"
    done = CliRunner().invoke(main, ["embed", "hf:org/name", "-o", str(target), "--force"])
    assert done.exit_code == 2, done.output
    assert blob.read_bytes() == before


def test_prompts_are_named_so_too(cache: Path) -> None:
    host = Host.installed()
    target = Target(small_cnn(), load_task("digits", 28))
    for source in ("hf:org/name", str(cache / "models--org--name")):
        names = InputNames(
            model="small-cnn",
            factory=None,
            task="",
            size=None,
            prompts=(source,),
            sane=None,
            sampler="kde",
        )
        (graph,) = resolve_prompts(host, names, source, target, NO_TRUST).graphs
        assert graph.size == sum(x.numel() for x in small_cnn().parameters())


def test_a_name_of_the_hub_is_no_function(cache: Path) -> None:
    class Task:
        classes = "ab"

    with pytest.raises(SourceError, match=f"not in the cache {cache}"):
        resolve_network(Host.installed(), "hf:gpt2", None, Task(), resize=False)
    assert not is_function_name("hf:gpt2")


def test_a_cache_becomes_a_zoo_with_each_network_once(cache: Path, tmp_path) -> None:
    told = json.loads(say("zoo", "add", cache, "-o", tmp_path / "zoo", "--json"))
    assert told["added"] == ["hub/models--org--name/snapshots/abc/model.safetensors"]
    assert not told["equal"]
    assert [*told["unread"]] == ["hub/models--org--name/snapshots/abc/config.json"]


def many_entries(folder: Path) -> Path:
    """Write a GGUF file whose metadata hold a million empty texts."""
    texts = struct.pack("<IQ", 8, 1_000_000) + bytes(8_000_000)
    entry = struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9) + texts
    tensor = struct.pack("<Q", 1) + b"a" + struct.pack("<IQIQ", 1, 4, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + entry + tensor
    (folder / "net.gguf").write_bytes(
        head + bytes(-len(head) % 32) + struct.pack("<4f", 1, 2, 3, 4)
    )
    return folder / "net.gguf"


def many_files(folder: Path) -> Path:
    """Make a folder of ten thousand files and a thousand folders."""
    for i in range(10_000):
        (folder / f"{i}.txt").touch()
    for i in range(1_000):
        (folder / f"below{i}").mkdir()
    save_file({"a.weight": torch.ones(4, 4)}, folder / "model.safetensors")
    return folder


def long_mlmodel(folder: Path) -> Path:
    """Write an MLflow folder whose description is as long as is read."""
    (folder / "data").mkdir()
    torch.save({"a.weight": torch.ones(4, 4)}, folder / "data" / "model.pth")
    text = "flavors:\n  pytorch:\n    model_data: data\n" + "  a: b\n" * 500_000
    (folder / "MLmodel").write_text(text)
    return folder


@pytest.mark.hostile
@pytest.mark.parametrize("make", [many_entries, many_files, long_mlmodel])
def test_much_around_a_small_network_is_small_work(make, tmp_path) -> None:
    if make is many_entries:
        pytest.importorskip("gguf")
    assert run("inspect", make(tmp_path)).require_small().code == 0


@pytest.mark.hostile
def test_a_cache_of_links_is_answered_in_a_sentence(tmp_path) -> None:
    folder = tmp_path / "models--a--b"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    secret = tmp_path / "secret.safetensors"
    save_file({"a.weight": torch.ones(4, 4)}, secret)
    (folder / "snapshots" / "abc" / "model.safetensors").symlink_to(secret)
    (folder / "blobs").symlink_to(tmp_path)  # the blobs themselves are elsewhere
    done = run("inspect", "hf:a/b", HF_HUB_CACHE=str(tmp_path))
    assert "leads out of its folder" in done.require_small().require_sentence()
