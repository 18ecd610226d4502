"""Numbers that a user types: an absurd one is wrong usage, told at once, whatever it would have taken."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner
from hostile.bounded import run

from sane_plugins import Host
from sane_plugins.architectures.model_library import parse_name
from sane_plugins.cli.initialize import main as sane_init
from sane_plugins.cli.inspect import inspect
from sane_plugins.cli.pretrain import pretrain
from sane_plugins.cli.zoo.add import add
from sane_plugins.cli.zoo.show import show
from sane_plugins.cli.zoo.train import train
from sane_plugins.errors import UsageError

HUGE = "1000000000000"
OPTIONS = {
    sane_init: [
        *(("--budget", text) for text in ("nan", "inf", "-inf", "-1", "0", "1e400")),
        *((f"--{name}", HUGE) for name in ("samples", "keep", "rounds", "few-shot", "epochs")),
        ("--few-shot-epochs", HUGE),
        *((option, "-1") for option in ("--samples", "--keep", "--epochs", "--size")),
        ("--size", HUGE),
        ("--samples", "9" * 5000),
        ("--device", "meta"),
    ],
    train: [
        *((f"--{name}", HUGE) for name in ("networks", "epochs", "processes", "size")),
        ("--seed", "9" * 30),
        *((f"--{name}", "-1") for name in ("networks", "images", "batch", "size")),
    ],
    pretrain: [
        *((f"--{name}", "nan") for name in ("lr", "gamma", "behaviour")),
        *((f"--{name}", HUGE) for name in ("batch", "views", "steps", "accumulate")),
        ("--seed", "9" * 30),
        ("--lr", "inf"),
        ("--behaviour", "1e400"),
    ],
}
CASES = [(command, *case) for command, cases in OPTIONS.items() for case in cases]


@pytest.mark.parametrize(
    ("command", "option", "text"), CASES, ids=[f"{c.name} {o} {t[:12]}" for c, o, t in CASES]
)
def test_an_absurd_number_is_wrong_usage(
    command, option: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = ["zoo"] if command is pretrain else []
    outcome = CliRunner().invoke(command, [*first, "-o", "out.safetensors", option, text])
    assert outcome.exit_code == 2, outcome.output
    assert option in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not [*tmp_path.iterdir()]


def test_a_share_is_a_number() -> None:
    assert CliRunner().invoke(inspect, ["x.pt", "--fail-under", "nan"]).exit_code == 2


@pytest.mark.parametrize("option", ["classes", "channels"])
@pytest.mark.parametrize("number", ["99999999999", "1000000000", "9" * 5000])
def test_networks_of_absurdly_many_classes_or_channels_are_not_built(
    option: str, number: str
) -> None:
    with pytest.raises(UsageError, match=f"{option}={number[:20]} follows the name"):
        parse_name(f"resnet18,{option}={number}", None, "torchvision:resnet18")


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_the_sentence_about_a_library_is_no_fault_of_its_plugin(library: str) -> None:
    if find_spec(library) is None:
        pytest.skip("not installed")
    host = Host.installed()
    with pytest.raises(UsageError, match="at most 10,000 channels"):
        host.build(f"{library}:resnet18,channels=1000000000", 10)
    assert not host.problems


def test_the_command_refuses_in_one_sentence(tmp_path: Path) -> None:
    if find_spec("torchvision") is None:
        pytest.skip("not installed")
    name = "torchvision:resnet18,channels=100000"
    outcome = run("inspect", name, cwd=tmp_path).require_small()
    assert name in outcome.require_sentence(code=2)


@pytest.mark.parametrize("length", [300, 5000])
def test_a_name_that_is_longer_than_any_file_s_is_not_there(length: int, tmp_path: Path) -> None:
    name = "x" * length
    for command, *arguments in (
        (inspect, name),
        (show, name),
        (add, name, "-o", str(tmp_path / "zoo")),
        # Without torchvision, a bare name is told to be one of its models, which is not there.
        *([(sane_init, name, "-o", str(tmp_path / "a.pt"))] if find_spec("torchvision") else []),
        (sane_init, "--task", name, "-o", str(tmp_path / "a.pt")),
        (sane_init, "--prompts", name, "-o", str(tmp_path / "a.pt")),
    ):
        outcome = CliRunner().invoke(command, arguments)
        assert outcome.exit_code in (1, 2)
        (sentence,) = [x for x in outcome.stderr.splitlines() if x.startswith("Error:")]
        assert "xxx" in sentence
        assert "unexpected" not in sentence
