"""`sane-plugins diff` and `inspect --textconv` as a user has them, and git with both."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from sane_plugins.architectures import small_cnn
from sane_plugins.cli.diff import _VERDICTS
from sane_plugins.cli.main import main as sane_plugins
from sane_plugins.comparison import VerdictKind

ROOT = Path(__file__).parents[2]


@pytest.fixture
def files(tmp_path) -> Path:
    torch.manual_seed(0)
    state = small_cnn().state_dict()
    torch.save(state, tmp_path / "a.pt")
    save_file(state, tmp_path / "same.safetensors")
    torch.save({key: x.half() for key, x in state.items()}, tmp_path / "half.pt")
    last = list(state)[-2]
    torch.save({**state, last: torch.randn(state[last].shape)}, tmp_path / "head.pt")
    (tmp_path / "broken.pt").write_bytes(b"no network")
    return tmp_path


def _diff(*arguments: object):
    return CliRunner().invoke(sane_plugins, ["diff", *map(str, arguments)])


def test_the_words_of_the_option_are_the_verdicts() -> None:
    assert list(_VERDICTS) == [kind.value for kind in VerdictKind]


def test_the_exit_code_is_zero_unless_more_is_asked(files) -> None:
    a, same, half = files / "a.pt", files / "same.safetensors", files / "half.pt"
    assert _diff(a, half).exit_code == 0
    assert _diff(a, same, "--exit-code").exit_code == 0
    assert _diff(a, half, "--exit-code").exit_code == 1
    assert _diff(a, half, "--accept", "rounded").exit_code == 0
    assert _diff(a, same, "--accept", "rounded").exit_code == 1
    assert _diff(a, same, "--accept", "rounded", "--exit-code").exit_code == 0
    assert _diff(a, half, "--accept", "equal").exit_code == 2
    assert _diff(a).exit_code == 2


def test_a_file_that_cannot_be_read_is_one_sentence(files) -> None:
    result = _diff(files / "a.pt", files / "broken.pt")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ") and "broken.pt" in result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr


def test_the_first_lines_answer(files) -> None:
    lines = _diff(files / "a.pt", files / "head.pt").stdout.splitlines()
    assert lines[2].startswith("Verdict: partial.")
    assert any(line.startswith("Replaced: 1 of ") for line in lines[3:6])


def test_lines_on_strangers_fit_the_verdict(files) -> None:
    """Norms of strangers begin alike and may stay so: that is no layer of one in the other."""
    for seed in (1, 2):
        torch.manual_seed(seed)
        module = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3, bias=False),
            torch.nn.BatchNorm2d(16),
            torch.nn.Conv2d(16, 32, 3, bias=False),
            torch.nn.BatchNorm2d(32),
        )
        module[1].running_mean.copy_(torch.linspace(1, 2, 16) + 0.01 * torch.randn(16))
        save_file(module.state_dict(), files / f"{seed}.safetensors")
    arguments = (files / "1.safetensors", files / "2.safetensors")
    lines = _diff(*arguments).stdout.splitlines()
    assert (
        lines[2]
        == "Verdict: unrelated. No weights of one were found in the other, but for vectors."
    )
    assert lines[3].startswith("Alike in vectors alone, which may be chance: 2 of 4 layers")
    assert lines[4].startswith("Replaced: 2 of 4 layers")
    assert json.loads(_diff(*arguments, "--json").stdout)["text"][1] == lines[3]


def test_json_tells_each_tensor(files) -> None:
    found = json.loads(_diff(files / "a.pt", files / "half.pt", "--json").stdout)
    assert (found["verdict"], found["derived"]) == ("rounded", "b")
    assert found["shares"] == {"rounded": 1.0}
    tensors = [x for layer in found["layers"] for x in layer["tensors"]]
    assert {x["precision"] for x in tensors} == {"float16"}
    assert all(0 < x["distance"] < 1e-3 for x in tensors)


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_a_picture_is_written_once(files) -> None:
    plot = files / "difference.png"
    assert _diff(files / "a.pt", files / "head.pt", "--plot", plot).exit_code == 0
    before = plot.read_bytes()
    assert before.startswith(b"\x89PNG")
    assert _diff(files / "a.pt", files / "half.pt", "--plot", plot).exit_code != 0
    assert plot.read_bytes() == before
    assert _diff(files / "a.pt", files / "half.pt", "--plot", files / "x.txt").exit_code == 2


def test_plain_lines_do_not_tell_the_file_and_change_with_their_tensor_alone(files) -> None:
    def lines(name: str) -> list[str]:
        result = CliRunner().invoke(sane_plugins, ["inspect", "--textconv", str(files / name)])
        assert result.exit_code == 0
        return result.stdout.splitlines()

    one, other = lines("a.pt"), lines("head.pt")
    (files / "elsewhere").mkdir()
    shutil.copy(files / "a.pt", files / "elsewhere" / "x.pt")
    assert lines("elsewhere/x.pt") == one
    changed = [(x, y) for x, y in zip(one, other, strict=True) if x != y]
    assert len(changed) == 1
    assert changed[0][0].split()[0] == changed[0][1].split()[0]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_shows_the_tensor_that_changed(files) -> None:
    folder = files / "repository"
    folder.mkdir()
    command = f"'{sys.executable}' -m sane_plugins inspect --textconv"
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters")]),
        "GIT_CONFIG_GLOBAL": os.devnull,
    }

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *identity, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    git("init", "--quiet")
    git("config", "diff.weights.textconv", command)
    (folder / ".gitattributes").write_text("*.pt diff=weights\n")
    shutil.copy(files / "a.pt", folder / "net.pt")
    git("add", ".")
    git("commit", "--quiet", "-m", "one")
    shutil.copy(files / "head.pt", folder / "net.pt")
    changed = [x for x in git("diff").splitlines() if x.startswith(("-", "+"))]
    names = {x[1:].split()[0] for x in changed if not x.startswith(("---", "+++"))}
    assert names == {list(small_cnn().state_dict())[-2]}
