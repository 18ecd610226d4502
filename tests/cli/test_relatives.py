"""Commands that look for relatives: what they say, of what, and with which exit code."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import nn

from sane_plugins.cli.main import main
from sane_plugins.formats import from_state_dict, save_safetensors
from sane_plugins.zoo import Entry, write_zoo


def state(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10)).state_dict()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(x) for x in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of four strangers, a half-precision copy, and a tuned network; beside it a shuffled file."""
    folder = tmp_path_factory.mktemp("relatives")
    states = {str(i): state(i) for i in range(4)}
    states["half"] = {key: x.half().float() for key, x in states["0"].items()}
    states["tuned"] = {
        key: x + 0.2 * x.std() * x**3 / x.std() ** 3 for key, x in states["1"].items()
    }
    entries = (
        (
            Entry(
                network=n, checkpoint="1", factory={}, properties={"score": 0.1 * i, "kind": "a"}
            ),
            x,
        )
        for i, (n, x) in enumerate(states.items())
    )
    write_zoo(folder / "zoo", "zoo", entries)
    order = torch.randperm(30)
    one = states["2"]
    shuffled = {
        "p.weight": one["0.weight"][order],
        "p.bias": one["0.bias"][order],
        "q.weight": one["2.weight"][:, order],
        "q.bias": one["2.bias"],
    }
    save_file({key: x.contiguous() for key, x in shuffled.items()}, folder / "x.safetensors")
    save_file(state(9), folder / "stranger.safetensors")
    return folder


def test_parents_finds_the_origin_and_nothing_else(folder):
    done = run("parents", folder / "x.safetensors", "--among", folder / "zoo", "--json")
    found = json.loads(done.stdout)
    assert [(x["name"], x["direction"]) for x in found["relatives"]] == [("2/1", "the same")]
    assert found["compared"] == 6 and found["relatives"][0]["properties"]["kind"] == "a"


def test_parents_says_who_is_older(folder):
    for name, direction in (("1", "parent"), ("tuned", "child")):
        other = "tuned" if name == "1" else "1"
        source = folder / f"{other}.safetensors"
        save_file(state(1) if other == "1" else _tuned(), source)
        done = run("parents", source, "--among", folder / "zoo", "--json")
        told = {x["name"]: x["direction"] for x in json.loads(done.stdout)["relatives"]}
        assert told == {f"{other}/1": "the same", f"{name}/1": direction}


def _tuned() -> dict[str, torch.Tensor]:
    return {key: x + 0.2 * x.std() * x**3 / x.std() ** 3 for key, x in state(1).items()}


def test_parents_of_a_stranger_are_none_and_that_is_no_error(folder):
    among = ("--among", folder / "zoo", "--among", folder / "x.safetensors")
    done = run("parents", folder / "stranger.safetensors", *among)
    assert done.exit_code == 0 and done.stdout == ""
    assert "None of 7 networks is a relative" in done.stderr


def _initial(path: Path, kind: str, prompts: list[Path]) -> None:
    provenance = {
        "recipe": {"kind": kind},
        "scores": [{"name": f"{kind} of ours", "chosen": True}],
        "prompts": [{"source": str(x)} for x in prompts],
    }
    graph = from_state_dict(state(9), "net")
    save_safetensors(graph, path, {"provenance": provenance})


def test_what_a_file_of_ours_says_of_its_origin_is_told(folder, tmp_path):
    (tmp_path / "lenders").mkdir()
    lender, other = tmp_path / "lenders" / "a.safetensors", tmp_path / "b.safetensors"
    save_file(state(2), lender)
    path = tmp_path / "initial.safetensors"
    _initial(path, "transfer", [lender])
    done = run("parents", path, "--among", tmp_path / "lenders")
    assert "says of itself: initial weights that sane-init wrote (transfer of ours)" in done.stderr
    assert f"given the prompt {lender}, among the networks compared" in done.stderr
    assert "None of 1 networks is a relative" in done.stderr
    _initial(path, "transfer", [lender, other])
    told = json.loads(run("parents", path, "--among", tmp_path / "lenders", "--json").stdout)
    assert told["told"]["prompts"] == [str(lender), str(other)]
    assert told["told"]["compared"] == [str(lender)]
    assert "of which 1 is among" in run("parents", path, "--among", lender).stderr
    assert "not among the networks" in run("parents", path, "--among", folder / "zoo").stderr
    _initial(path, "default", [lender])
    assert "no network lent" in run("parents", path, "--among", lender).stderr
    stranger = run("parents", folder / "stranger.safetensors", "--among", lender)
    assert "says of itself" not in stranger.stderr


def test_a_folder_of_files_is_looked_through(folder, tmp_path):
    save_file(state(2), tmp_path / "origin.safetensors")
    save_file(state(5), tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    done = run("parents", folder / "x.safetensors", "--among", tmp_path, "--json")
    found = json.loads(done.stdout)
    assert [Path(x["name"]).name for x in found["relatives"]] == ["origin.safetensors"]
    assert found["compared"] == 2


def test_search_keeps_to_conditions(folder):
    done = run(
        "zoo",
        "search",
        folder / "zoo",
        folder / "x.safetensors",
        "--where",
        "score>=0.25",
        "--json",
    )
    found = json.loads(done.stdout)
    assert {x["name"] for x in found["nearest"]} == {"3/1", "half/1", "tuned/1"}
    assert not any(x["related"] for x in found["nearest"])
    table = run("zoo", "search", folder / "zoo", folder / "x.safetensors", "-n", "1")
    assert "2/1" in table.stdout and "the same weights, channels in another order" in table.stdout


@pytest.mark.parametrize(
    ("condition", "code", "told"),
    [
        ("score", 2, "is no condition"),
        ("kind>b", 2, "is no number"),
        ("score>5", 1, "is asked for"),
    ],
)
def test_conditions_that_cannot_be_are_told(folder, condition, code, told):
    done = run("zoo", "search", folder / "zoo", folder / "x.safetensors", "--where", condition)
    assert done.exit_code == code and told in done.stderr
    assert "Traceback" not in done.stderr


def test_duplicates_are_grouped(folder):
    found = json.loads(run("zoo", "duplicates", folder / "zoo", "--json").stdout)
    assert found["duplicates"] == [{"networks": ["0/1", "half/1"], "identical": False}]


def test_tree_shows_families(folder):
    found = json.loads(run("zoo", "tree", folder / "zoo", "--json").stdout)
    families = [{x["name"]: x["parent"] for x in family} for family in found["families"]]
    assert {"1/1": None, "tuned/1": "1/1"} in families
    assert set(found["alone"]) == {"2/1", "3/1"}
    assert "`-- tuned/1" in run("zoo", "tree", folder / "zoo").stdout


def test_what_is_no_zoo_or_no_network_is_told(folder):
    for arguments in (
        ("zoo", "tree", folder),
        ("zoo", "search", folder / "nothing", folder / "x.safetensors"),
        ("parents", folder / "nothing.pt", "--among", folder / "zoo"),
        ("parents", folder / "x.safetensors", "--among", folder / "nothing"),
    ):
        done = run(*arguments)
        assert done.exit_code == 1 and done.stderr.count("Error: ") == 1, arguments
        assert done.stdout == ""
