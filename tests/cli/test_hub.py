"""`hf-sane`: names of the hub are read from the cache by our commands, and `hf` is told of the program."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from hubcache import keep

from sane_plugins.architectures import small_cnn
from sane_plugins.cli.hub import main
from sane_plugins.cli.main import main as sane_plugins

COMMANDS = sorted(main.commands)
MANIFEST = ".local/share/hf/extensions/hf-sane/manifest.json"
# All that huggingface_hub 1.7.0 takes, which stops at what it does not know, and requires but for the last.
FIELDS = (
    *("owner", "repo", "repo_id", "short_name", "executable_name", "executable_path", "type"),
    *("installed_at", "source", "description"),
)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Return a cache of a network, of the same with another classifier, and of a broken revision."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "home" / "hub"
    torch.manual_seed(0)
    module = small_cnn()
    keep(cache, "org/a", module.state_dict())
    torch.nn.init.normal_([*module.parameters()][-2])
    keep(cache, "org/b", module.state_dict())
    torch.nn.init.constant_(next(module.parameters()), torch.nan)
    keep(cache, "org/a", module.state_dict(), "broken")
    return cache


@pytest.fixture
def scripts(tmp_path, monkeypatch) -> Path:
    """Return the folder of an environment's programs, where `hf-sane` lies, in a home without extensions."""
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "hf-sane").touch(mode=0o755)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(folder))
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    return folder


def _run(command: click.Command, *arguments: str):
    return CliRunner().invoke(command, arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "org/a", "--json"),
        ("inspect", "org/a@broken", "--json"),
        ("diff", "org/a", "org/b", "--exit-code"),
        ("check", "org/a", "org/a@broken", "--json"),
        ("predict", "org/a/model.safetensors", "--json"),
        ("parents", "org/b", "--among", "org/a", "--json"),
        ("inspect", "org/none"),
        ("inspect", "hf:org/none"),
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("cache")
def test_a_name_is_what_sane_plugins_reads_with_the_prefix(arguments) -> None:
    prefixed = [f"hf:{x}" if x.startswith("org/") else x for x in arguments]
    ours, theirs = _run(main, *arguments), _run(sane_plugins, *prefixed)
    assert (ours.exit_code, ours.stdout, ours.stderr) == (
        theirs.exit_code,
        theirs.stdout,
        theirs.stderr,
    )
    is_good = arguments[:2] in (("inspect", "org/a"), ("inspect", "org/a@broken"))
    assert ours.exit_code == (0 if is_good or arguments[0] in ("predict", "parents") else 1)
    assert "Traceback" not in ours.output


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("org/none", "run hf download org/none."),
        ("org/a@v2", "run hf download org/a --revision v2."),
        ("org/a/vae/model.safetensors", "run hf download org/a."),
        ("org/a@broken/vae", "run hf download org/a --revision broken."),
    ],
)
def test_what_is_not_in_the_cache_is_told_with_the_command_that_fetches_it(
    cache, name: str, way_out: str
) -> None:
    before = sorted(cache.rglob("*"))
    done = _run(main, "inspect", name)
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith(f"{way_out}\n")
    assert sorted(cache.rglob("*")) == before


def test_a_path_is_told_from_a_name_by_how_it_begins(cache, tmp_path) -> None:
    here = tmp_path / "runs" / "a"
    here.parent.mkdir()
    here.write_bytes(next(cache.glob("*--b/snapshots/*/*")).read_bytes())
    for path in ("./runs/a", str(here)):
        assert _run(main, "diff", "org/b", path, "--exit-code").exit_code == 0
    done = _run(main, "inspect", "runs/a")
    assert done.exit_code == 2
    assert "write './runs/a'" in done.stderr
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "a").write_text("no network")
    assert _run(main, "diff", "org/a", "org/b", "--exit-code").exit_code == 1  # the cache has it


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from sane_plugins.cli.hub import main\n"
        f"for name in {[[], *([x] for x in COMMANDS)]}:\n"
        "    try: main([*name, '--help'])\n    except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'sklearn', 'rich'} & set(sys.modules), name"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.count("Usage") == 1 + len(COMMANDS)
    assert "Example: sane-plugins" not in done.stdout
    assert not done.stderr.strip()


def test_every_option_is_that_of_sane_plugins() -> None:
    for name in set(COMMANDS) - {"register"}:
        ours, theirs = main.commands[name], sane_plugins.commands[name]
        assert [x.opts for x in ours.params] == [x.opts for x in theirs.params]
        assert not any(x.type.name == "name" for x in theirs.params), "the original was changed"


def test_registering_writes_what_every_hf_reads_once(scripts, tmp_path) -> None:
    first, second = (json.loads(_run(main, "register", "--json").stdout) for _ in range(2))
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert (first["registered"], second["registered"]) == (True, False)
    assert sorted(manifest) == sorted(FIELDS)
    assert manifest["executable_path"] == str(scripts / "hf-sane") == first["program"]
    assert "." in manifest["owner"], (
        "an account of GitHub may have this name, and hf updates from it"
    )


@pytest.mark.parametrize("text", ['{"executable_path": "/x/hf-sane"}', "{}", "[" * 50_000, "\0"])
def test_what_another_registered_stays_without_force(scripts, tmp_path, text: str) -> None:
    path = tmp_path / MANIFEST
    path.parent.mkdir(parents=True)
    path.write_text(text)
    refused = _run(main, "register")
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert path.read_text() == text
    assert _run(main, "register", "--force").exit_code == 0
    assert str(scripts) in path.read_text()


def test_a_program_that_is_not_installed_is_not_registered(scripts, tmp_path) -> None:
    (scripts / "hf-sane").unlink()
    done = _run(main, "register")
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    (tmp_path / ".local").write_text("no folder")
    (scripts / "hf-sane").touch(mode=0o755)
    done = _run(main, "register")
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.output
