"""The doctor: what is well is said to be, planted faults are found, and a plugin is disabled for good."""

import json
import sys
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner
from torch import nn

from sane_plugins import Host
from sane_plugins.cli.main import main
from sane_plugins.doctor import examine, list_extras
from sane_plugins.plugins import disabled_file, set_disabled


@pytest.fixture(autouse=True)
def _own_configuration(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SANE_PLUGINS_CONFIG", str(tmp_path / "config"))


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a distribution with one plugin module."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def add(name: str, code: str) -> None:
        text = "from sane_plugins import hookimpl\n" + textwrap.dedent(code)
        (tmp_path / f"{name}.py").write_text(text)
        (info := tmp_path / f"{name}-1.0.dist-info").mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-dist\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[sane_plugins]\n{name} = {name}\n")

    yield add
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def _run(*arguments: str) -> tuple[int, dict]:
    done = CliRunner().invoke(main, [*arguments, "--json"])
    return done.exit_code, json.loads(done.stdout) if done.stdout else {}


def test_a_sound_installation_is_well() -> None:
    code, told = _run("doctor")
    assert (code, told["well"], told["complaints"]) == (0, True, [])
    assert {"python", "torch", "pluggy"} <= told["versions"].keys()
    assert "cpu" in told["devices"]
    plugins = {x["name"]: x for x in told["plugins"]}
    assert plugins["builtin"]["seconds"] >= 0
    assert "kde" in plugins["builtin"]["offers"]["samplers"]
    assert all(x["error"] is None and not x["is_skipped"] for x in told["self_test"])
    assert {x["what"] for x in told["self_test"]} >= {"encode the first", "predict its properties"}


RIGHT = """
@hookimpl
def sane_open(source): return None
@hookimpl
def sane_samplers():
    import torch
    return {"near": lambda prompts, count, rng:
        prompts[:1] + torch.randn((count, *prompts.shape[1:]), generator=rng)}
"""
FAULTS = {
    "import": ("import no_such_module", "plugin planted: it is left out: ModuleNotFoundError"),
    "seed": (
        RIGHT.replace(", generator=rng", ""),
        "plugin planted, sampler 'near': the same seed draws other latents",
    ),
    "greedy": (
        RIGHT.replace("return None", "import torch; return source + 1"),
        "plugin planted, sane_open: it raises for a torch module",
    ),
    "misspelt": (RIGHT.replace("sane_samplers", "sane_sampler"), "there is no hook sane_sampler"),
    "wrong kind": (RIGHT.replace('"near"', "7"), "plugin planted: sampler 7 is left out"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(install, fault: str) -> None:
    code, said = FAULTS[fault]
    install("planted", code)
    found = examine(Host.installed(), seconds=60)
    assert not found.is_well
    assert any(said in x for x in found.complaints), found.complaints
    assert all("planted" in x for x in found.complaints)


def test_a_right_plugin_is_tried_and_well(install) -> None:
    install("planted", RIGHT)
    found = examine(Host.installed(), seconds=60)
    assert found.is_well, found.complaints
    assert {x.what for x in found.trials if x.plugin == "planted"} == {
        "decline what is not its own",
        "sampler 'near'",
    }


def test_it_says_what_each_plugin_answers(install, tmp_path) -> None:
    install("planted", "@hookimpl\ndef sane_open(source): raise KeyError('oops')")
    path = Host.installed().save(Host.installed().open(nn.Linear(2, 2)), tmp_path / "n.npz")
    found = examine(Host.installed(), str(path), seconds=60)
    answers = {x.name: x.answers for x in found.plugins}
    assert answers["planted"]["sane_open"] == "fails: KeyError: 'oops'"
    assert answers["builtin"]["sane_open"].startswith("answers with a WeightGraph")
    assert answers["onnx"]["sane_open"] == "passes"
    assert not found.is_well


def test_extras_that_are_missing_say_how_to_install_them(monkeypatch) -> None:
    lines = [
        'onnx>=1.21; extra == "onnx"',
        'no-such-thing>=2; extra == "images"',
        'pluggy>=99.0; extra == "gguf"',
        'ruff; extra == "dev"',
        "torch>=2.8",
    ]
    monkeypatch.setattr("sane_plugins.doctor.extras.requires", lambda _: lines)
    extras = {x.name: x for x in list_extras()}
    assert set(extras) == {"onnx", "images", "gguf"}
    assert extras["images"].lacking == ("no-such-thing>=2",)
    assert extras["images"].install_line == "pip install 'sane-plugins[images]'"
    assert extras["gguf"].lacking[0].startswith("pluggy>=99.0 (installed is ")


def test_a_plugin_is_disabled_until_it_is_enabled(monkeypatch) -> None:
    assert _run("plugins", "disable", "TimM") == (
        0,
        {"changed": True, "disabled": ["timm"], "file": str(disabled_file())},
    )
    assert _run("plugins", "disable", "timm")[1]["changed"] is False
    host = Host.installed()
    assert "timm" not in {x.name for x in host.plugins()}
    assert host.disabled == ["timm"]
    assert not host.problems
    monkeypatch.setenv("SANE_PLUGINS_LOAD", "builtin,timm")  # this process says otherwise
    assert "timm" in {x.name for x in Host.installed().plugins()}
    monkeypatch.delenv("SANE_PLUGINS_LOAD")
    assert _run("plugins", "enable", "timm")[1]["disabled"] == []
    assert "timm" in {x.name for x in Host.installed().plugins()}


def test_a_name_that_nobody_has_is_wrong_usage() -> None:
    done = CliRunner().invoke(main, ["plugins", "disable", "tim"])
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: plugin 'tim': no plugin or distribution of that name")
    assert "did you mean timm" in done.stderr
    assert not disabled_file().exists()


def test_a_plugin_that_was_uninstalled_since_can_be_enabled() -> None:
    set_disabled("gone", True)
    assert _run("plugins", "enable", "gone") == (
        0,
        {"changed": True, "disabled": [], "file": str(disabled_file())},
    )


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_a_list_that_cannot_be_read_stops_nobody(content) -> None:
    path = disabled_file()
    path.parent.mkdir(parents=True)
    path.mkdir() if content is None else path.write_bytes(content)
    host = Host.installed()
    assert host.open(nn.Linear(2, 2)).size == 6
    assert [x.plugin for x in host.problems] == ["(list of disabled plugins)"]
    done = CliRunner().invoke(main, ["plugins", "disable", "timm"])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)


def test_without_any_plugin_of_ours_it_says_so() -> None:
    set_disabled("sane-plugins", True)
    code, told = _run("doctor")
    assert code == 1
    assert any("none of our own plugins" in x for x in told["complaints"])
    assert Path(disabled_file()).read_text() == "sane-plugins\n"
