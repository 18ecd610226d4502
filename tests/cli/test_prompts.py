"""`sane-init --prompts` takes offers and caches, and tells which classes each prompt has seen."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from sane_plugins import hookimpl
from sane_plugins.architectures import build, small_cnn
from sane_plugins.cli import initialize as command
from sane_plugins.cli.initialize import main
from sane_plugins.formats import read_metadata
from sane_plugins.grafting import PromptInfo, PromptOffer
from sane_plugins.host import Host

INFO = PromptInfo(
    name="mine", task="pets", licence="MIT", classes=("tabby, tabby cat", "goldfish", "hamster")
)


class _Offering:
    @hookimpl
    def sane_prompts(self) -> dict[str, PromptOffer]:
        torch.manual_seed(5)
        module = small_cnn(3)
        return {"mine": PromptOffer(info=INFO, load=lambda: module)}


@pytest.fixture
def offering(monkeypatch) -> None:
    def open_host() -> Host:
        host = Host.installed()
        host.register(_Offering(), "offering")
        return host

    monkeypatch.setattr(command, "open_host", open_host)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Return a folder of images of two classes, one of which the offered network has seen."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("Tabby_cat", "stone"):
        (folder / name).mkdir()
        for i in range(12):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def _init(photos: Path, out: Path, *arguments: str) -> dict:
    told = CliRunner().invoke(
        main,
        ["small-cnn", "--task", str(photos), "-o", str(out), "--no-score", "--json", *arguments],
    )
    assert told.exit_code == 0, told.stderr
    return json.loads(told.stdout)


@pytest.mark.usefixtures("offering")
def test_an_offer_is_named_and_what_it_has_seen_is_told(photos, tmp_path) -> None:
    told = _init(photos, tmp_path / "a.safetensors", "--prompts", "mine")
    (note,) = [x for x in told["notes"] if x.startswith("prompt mine (")]
    assert "trained on pets; licence MIT" in note
    assert "1 of the task's 2 classes (Tabby_cat) is among its 3" in note
    verified = CliRunner().invoke(main, ["verify", str(tmp_path / "a.safetensors")])
    assert verified.exit_code in (0, 1)  # no plugin offers it there: one sentence, no traceback
    assert "Traceback" not in verified.output


def test_a_file_of_which_nothing_is_known_is_told_to_be_so(photos, tmp_path) -> None:
    path = tmp_path / "net.pt"
    torch.save(small_cnn(3).state_dict(), path)
    told = _init(photos, tmp_path / "a.safetensors", "--prompts", str(path))
    assert any("which classes it has seen is not known" in x for x in told["notes"])
    assert any(f"prompt {path}: weights that look never trained" in x for x in told["notes"])


def test_a_name_is_told_to_be_built_with_fresh_weights_before_the_work(photos, tmp_path) -> None:
    arguments = ["--task", str(photos), "-o", str(tmp_path / "a.safetensors"), "--no-score"]
    done = CliRunner().invoke(main, [*arguments, "--prompts", "small_resnet"])
    assert done.exit_code == 0, done.output
    told = done.stderr.splitlines()
    assert sum("prompt small_resnet: a name, built with fresh weights" in x for x in told) == 1


@pytest.mark.usefixtures("offering")
def test_an_offer_of_fresh_weights_is_no_name_that_builds(photos, tmp_path) -> None:
    told = _init(photos, tmp_path / "a.safetensors", "--prompts", "mine")
    assert any("prompt mine: weights that look never trained" in x for x in told["notes"])


def test_networks_of_the_caches_are_used_and_can_be_found_again(
    photos, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(small_cnn(3).state_dict(), checkpoints / "one.pth")
    torch.save(build({"name": "resnet", "depth": 8}).state_dict(), checkpoints / "two.pth")
    out = tmp_path / "a.safetensors"
    told = _init(photos, out, "--prompts", "cache")
    assert any("one.pth" in note and "two.pth" in note for note in told["notes"])
    recorded = read_metadata(out)["provenance"]["command"]["prompts"]
    assert sorted(Path(x).name for x in recorded) == ["one.pth", "two.pth"]
    (checkpoints / "three.pth").write_bytes((checkpoints / "one.pth").read_bytes())
    verified = CliRunner().invoke(main, ["verify", str(out)])
    assert verified.exit_code == 0, verified.output


def test_an_empty_cache_and_an_unknown_name_are_told_in_one_sentence(
    photos, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    for name, code in (("cache", 2), ("no-such-network", 1)):
        out = tmp_path / "a.safetensors"
        done = CliRunner().invoke(main, ["--task", str(photos), "-o", str(out), "--prompts", name])
        assert done.exit_code == code, done.output
        assert done.stderr.count("\n") == 1
        assert not out.exists()
