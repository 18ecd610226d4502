"""Hugging Face's `hf` runs our program as `hf sane`, on the cache that it keeps itself."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hubcache import keep

from sane_plugins.architectures import small_cnn
from sane_plugins.cli.hub import main

hub = pytest.importorskip("huggingface_hub", reason="HOST ABSENT: run tox -e hosts")
HF = shutil.which("hf", path=str(Path(sys.executable).parent))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(HF is None, reason="HOST ABSENT: hf; run tox -e hosts"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Return a home where `hf sane` is registered, with a cache of two networks."""
    home = tmp_path_factory.mktemp("home")
    torch.manual_seed(0)
    module = small_cnn()
    keep(home / "cache" / "hub", "org/a", module.state_dict())
    torch.nn.init.normal_([*module.parameters()][-2])
    keep(home / "cache" / "hub", "org/b", module.state_dict())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        if shutil.which("hf-sane", path=sysconfig.get_path("scripts")) is None:  # not installed
            script = home / "hf-sane"
            script.write_text(
                f"#!{sys.executable}\nfrom sane_plugins.cli.hub import main\nmain()\n"
            )
            script.chmod(0o755)
            patch.setattr(sysconfig, "get_path", lambda _: str(home))
        assert CliRunner().invoke(main, ["register"]).exit_code == 0
    return home


def _hf(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {k: x for k, x in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_"))}
    variables |= {
        "HOME": str(home),
        "HF_HOME": str(home / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }
    return subprocess.run([HF, *arguments], env=variables, capture_output=True, text=True)


def test_hf_reads_the_networks_of_its_cache(home: Path) -> None:
    file = hub.try_to_load_from_cache("org/a", "model.safetensors", home / "cache" / "hub")
    told = _hf(home, "sane", "inspect", "org/a", "--json")
    assert told.returncode == 0, told.stderr
    record = json.loads(told.stdout)
    assert record["source"] == file
    assert record["parameters"] == sum(x.numel() for x in small_cnn().parameters())


def test_exit_codes_and_errors_come_through(home: Path) -> None:
    compared = _hf(home, "sane", "diff", "org/a", "org/b", "--exit-code")
    assert compared.returncode == 1, compared.stderr
    assert "Verdict: partial" in compared.stdout
    missing = _hf(home, "sane", "check", "org/none")
    assert missing.returncode == 1
    assert missing.stderr.endswith("run hf download org/none.\n")
    assert _hf(home, "sane", "inspect").returncode == 2


def test_hf_lists_the_program_and_forgets_it(home: Path, tmp_path) -> None:
    shutil.copytree(home / ".local", tmp_path / ".local")
    assert "Check, compare and read networks" in _hf(tmp_path, "--help").stdout
    manifest = tmp_path / ".local/share/hf/extensions/hf-sane/manifest.json"
    before = manifest.read_text()
    updated = _hf(tmp_path, "extensions", "update")
    assert updated.returncode == 0, updated.stderr
    assert manifest.read_text() == before, "something was installed in its place"
    assert _hf(tmp_path, "extensions", "remove", "sane").returncode == 0
    assert not manifest.parent.exists()
