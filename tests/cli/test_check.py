"""`check`, `predict` and `compare` on real command lines: tables, JSON, exit codes, and wrong input."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import sane_plugins
from sane_plugins import properties
from sane_plugins.architectures import small_cnn
from sane_plugins.cli import compare as compare_command
from sane_plugins.cli.main import main
from sane_plugins.zoo import Zoo, write_zoo


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with two trained networks, a fresh one, a text, and a damaged file; a zoo beside it."""
    made = tmp_path_factory.mktemp("nets")
    shipped = Zoo.open(Path(sane_plugins.__file__).parent / "data" / "prompts")
    some = shipped.entries[:8]
    (made / "runs" / "deep").mkdir(parents=True)
    torch.save(shipped.state_dict(some[0]), made / "runs" / "good.pt")
    torch.save(shipped.state_dict(some[1]), made / "runs" / "deep" / "good.pt")
    torch.manual_seed(0)
    torch.save(nn.Linear(50, 40).state_dict(), made / "runs" / "fresh.pt")
    (made / "runs" / "notes.txt").write_text("trained on a Sunday")
    (made / "runs" / "torn.pt").write_bytes(b"PK\3\4")
    write_zoo(made / "zoo", "zoo", ((x, shipped.state_dict(x)) for x in some))
    return made


def test_a_folder_is_checked_file_by_file(folder: Path) -> None:
    done = run("check", folder / "runs", "--json")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    verdicts = {str(Path(k).relative_to(folder / "runs")): x["verdict"] for k, x in told.items()}
    assert verdicts == {
        "good.pt": "healthy",
        "deep/good.pt": "healthy",
        "fresh.pt": "never trained",
        "torn.pt": "unreadable",
    }
    assert "1 other file is no network" in done.stderr
    table = run("check", folder / "runs").stdout
    assert "never trained" in table
    assert "fresh.pt: all of its weights" in table


def test_the_exit_code_says_whether_all_are_healthy(folder: Path) -> None:
    def code(*arguments: object) -> int:
        done = run("check", *arguments)
        print(*arguments, done.output, sep="\n")  # shown where an assertion fails
        return done.exit_code

    good, fresh, zoo = folder / "runs" / "good.pt", folder / "runs" / "fresh.pt", folder / "zoo"
    assert code(good, zoo) == 0
    assert code(fresh) == 1
    assert code(fresh, "--ignore", "never_trained") == 0
    assert code(good, "--zoo", zoo) == 0
    assert code(good, "--ignore", "nothing") == 2
    assert code(folder / "none.pt") == 1
    assert "Error: " in run("check", folder / "none.pt").stderr
    assert code(good, "--zoo", folder / "runs") == 1


@pytest.fixture(scope="module")
def initial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file that `sane-init` wrote: a default whose classifier is fitted."""
    path = tmp_path_factory.mktemp("initial") / "initial.safetensors"
    provenance = {"recipe": {"kind": "default"}, "scores": [{"name": "default 1", "chosen": True}]}
    torch.manual_seed(0)
    graph = sane_plugins.open(small_cnn(1))
    sane_plugins.Host.installed().save(graph, path, metadata={"provenance": provenance})
    return path


def test_initial_weights_pass(initial: Path) -> None:
    done = run("check", initial)
    assert done.exit_code == 0, done.output
    assert "initial weights that sane-init wrote (default 1)" in done.stdout


def test_of_initial_weights_it_is_said_that_estimates_are_no_measurement(
    initial: Path, folder: Path
) -> None:
    good = folder / "runs" / "good.pt"
    done = run("predict", initial, good)
    assert done.stderr.count("no measurement") == 1
    assert "initial.safetensors: initial weights that sane-init wrote" in done.stderr
    told = json.loads(run("predict", initial, good, "--json").stdout)
    assert all("no measurement" in x["caveat"] for x in told[str(initial)].values())
    assert not any(x["caveat"] for x in told[str(good)].values())
    assert "no measurement of these" in run("compare", initial, good).stderr
    assert "no measurement" not in run("predict", good).stderr


def test_predictions_are_a_row_per_network_and_sort(folder: Path) -> None:
    sources = (folder / "runs", "--property", "test_accuracy", "--property", "gap", "--force")
    done = run("predict", *sources, "--sort", "test_accuracy", "--csv")
    assert done.exit_code == 1
    rows = [*csv.DictReader(done.stdout.splitlines())]
    values = [float(row["test_accuracy"]) for row in rows if row["test_accuracy"]]
    assert len(values) == 3
    assert values == sorted(values, reverse=True)
    assert [row["source"] for row in rows if row["error"]] == [str(folder / "runs" / "torn.pt")]
    assert next(row for row in rows if "fresh" in row["source"])["gap_known_kind"] == "False"
    told = json.loads(run("predict", *sources, "--sort", "-gap", "--json").stdout)
    gaps = [x["gap"]["value"] for x in told.values() if "gap" in x]
    assert gaps == sorted(gaps)
    assert set(told[str(folder / "runs" / "torn.pt")]) == {"error"}
    wrong = run("predict", *sources, "--sort", "colour")
    assert (wrong.exit_code, "colour" in wrong.stderr) == (2, True)
    assert run("predict", *sources, "--json", "--csv").exit_code == 2


def test_of_two_networks_the_better_is_told_or_that_it_cannot_be(
    sane_data: Path, folder: Path
) -> None:
    from sane_plugins.zoo import import_published

    zoo = import_published(sane_data / "zoos" / "mnist-cnn.json")
    first, last = folder / "first.pt", folder / "last.pt"
    best = zoo.best("test_accuracy", 1).entries[0]
    start = next(e for e in zoo.entries if (e.network, e.checkpoint) == (best.network, "0"))
    torch.save(zoo.state_dict(start), first)
    torch.save(zoo.state_dict(best), last)
    assert f"B is better, over 99%: {last}" in run("compare", first, last).stdout
    told = json.loads(run("compare", last, first, "--json").stdout)
    assert (told["better"], told["better_source"]) == ("a", str(last))
    assert run("compare", last, last).stdout.startswith("Cannot tell: both are estimated alike")
    unknown = json.loads(run("compare", last, folder / "runs" / "fresh.pt", "--json").stdout)
    assert unknown["better"] is None
    assert unknown["probability"] is None
    assert "B is unlike" in unknown["reason"]
    assert run("compare", last, last, "--property", "act").exit_code == 2


def test_a_lone_unreadable_network_is_one_sentence_and_an_error_in_json(tmp_path) -> None:
    torn = tmp_path / "torn.pt"
    torn.write_bytes(b"PK\x03\x04")
    said = CliRunner().invoke(main, ["predict", str(torn)])
    assert (said.exit_code, said.stdout) == (1, "")
    assert said.stderr.count("Error: ") == 1
    for command in ("predict", "check"):
        told = CliRunner().invoke(main, [command, str(torn), "--json"])
        assert told.exit_code == 1
        assert "error" in json.loads(told.stdout)[str(torn)]


def test_the_help_of_compare_names_the_limit_of_the_room() -> None:
    assert compare_command._SURE == properties.SURE
