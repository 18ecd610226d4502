"""Saving: each file is written once, and whether it can be is answered before the work, without writing."""

import json
from pathlib import Path

import pluggy
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

import sane_plugins
from sane_plugins.attachment import attach
from sane_plugins.cli.initialize import main
from sane_plugins.errors import SourceError, UsageError
from sane_plugins.formats import LazyTensors, save_safetensors
from sane_plugins.host import Host
from sane_plugins.weights import from_module

METADATA = {"provenance": {"seed": 3}}


@pytest.fixture
def renamed(monkeypatch) -> list[Path]:
    """Record which files appear: each is written beside its place and renamed."""
    found: list[Path] = []
    replace = Path.replace

    def recorded(self: Path, target: Path) -> Path:
        found.append(Path(target))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", recorded)
    return found


@pytest.mark.parametrize(
    ("name", "beside"),
    [("new.safetensors", []), ("new.pt", ["new.pt.provenance.json"])],
)
def test_one_run_writes_each_file_once(tmp_path, renamed, name: str, beside: list[str]) -> None:
    done = CliRunner().invoke(main, ["--no-score", "-o", str(tmp_path / name)])
    assert done.exit_code == 0, done.output
    assert [path.name for path in renamed] == [name, *beside]
    assert CliRunner().invoke(main, ["verify", str(tmp_path / name)]).exit_code == 0


def test_metadata_join_what_the_file_tells_of_itself(tmp_path) -> None:
    host, graph = Host.installed(), from_module(nn.Linear(3, 2))
    path = host.save(graph, tmp_path / "net.safetensors", metadata=METADATA)
    told = json.loads(LazyTensors(path).metadata["sane"])
    assert told["provenance"] == {"seed": 3}
    assert told["keys"] == ["weight", "bias"]
    forged = save_safetensors(graph, path, {"keys": ["other"]})
    assert host.open(forged).container == "safetensors"
    assert json.loads(LazyTensors(forged).metadata["sane"])["keys"] == ["weight", "bias"]
    for name in ("net.npz", "net.safetensors.index.json"):
        path = host.save(graph, tmp_path / name, metadata=METADATA)
        assert json.loads((tmp_path / f"{name}.provenance.json").read_text()) == METADATA


NARROW = nn.Linear(2, 2).to(torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "module", "error", "said"),
    [
        ("net.xyz", nn.Linear(2, 2), UsageError, r"no plugin writes '\.xyz'"),
        ("net.npz", NARROW, SourceError, "bfloat16.*NumPy does not know it"),
        ("net.jit", nn.Linear(2, 2), SourceError, "holds a program"),
        ("net.onnx", nn.Linear(2, 2), SourceError, "did not come from an ONNX file"),
        ("there.pt", nn.Linear(2, 2), UsageError, "--force"),
        ("none/net.pt", nn.Linear(2, 2), UsageError, "folder does not exist"),
        ("net.pt", NARROW, None, ""),
        ("net.safetensors", NARROW, None, ""),
        ("net.safetensors.index.json", NARROW, None, ""),
    ],
)
def test_a_check_answers_as_saving_would_and_writes_nothing(
    tmp_path, monkeypatch, name: str, module: nn.Module, error: type[Exception] | None, said: str
) -> None:
    if name == "net.onnx":
        pytest.importorskip("onnx")
    (tmp_path / "there.pt").touch()
    host, graph = Host.installed(), from_module(module)
    if error is None:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", lambda *_, **__: pytest.fail("opened"))
            patch.setattr(Path, "touch", lambda *_, **__: pytest.fail("touched"))
            host.check_save(graph, tmp_path / name)
        host.save(graph, tmp_path / name)
        return
    for call in (host.check_save, host.save):
        with pytest.raises(error, match=said):
            call(graph, tmp_path / name)
        assert [path.name for path in tmp_path.iterdir()] == ["there.pt"]


def test_a_check_asks_for_the_right_to_write(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(SourceError, match="cannot be written"):
        Host.installed().check_save(from_module(nn.Linear(2, 2)), tmp_path / "net.pt")


class _Older:
    """A plugin of others that saves as plugins did before there were metadata."""

    @sane_plugins.hookimpl
    def sane_save(self, graph, target):
        if target.suffix != ".xyz":
            return None
        target.write_text(graph.source)
        return target


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_plugin_that_takes_neither_metadata_nor_like(tmp_path, wrapped: bool) -> None:
    host, graph = Host.installed(), from_module(nn.Linear(2, 2))
    host.register(_Older(), "older")
    if wrapped:

        class Wrapper:
            @sane_plugins.hookimpl(wrapper=True)
            def sane_save(self):
                return (yield)

        host.register(Wrapper(), "wrapper")
    host.check_save(graph, tmp_path / "net.xyz")
    assert host.save(graph, tmp_path / "net.xyz", metadata=METADATA).read_text() == "Linear"
    assert json.loads((tmp_path / "net.xyz.provenance.json").read_text()) == METADATA


def test_saving_through_another_programs_manager(tmp_path) -> None:
    pm, target = pluggy.PluginManager("host"), tmp_path / "net.safetensors"
    attach(pm)
    graph = from_module(nn.Linear(2, 2))
    assert pm.hook.sane_check_save(graph=graph, target=target, like=None)
    assert pm.hook.sane_save(graph=graph, target=target, metadata=METADATA, like=None) == target
    assert set(load_file(target)) == {"weight", "bias"}
