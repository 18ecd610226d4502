"""A file's word on the initial weights in it is read, and a stranger's nonsense there says nothing."""

import json
from pathlib import Path

import pytest
import torch

from sane_plugins import Host
from sane_plugins.formats import from_state_dict, initial_weights, save_checkpoint, sidecar

PROVENANCE = {
    "recipe": {"kind": "transfer"},
    "scores": [{"name": "default 1"}, {"name": "transfer from a.pt (graft)", "chosen": True}],
    "prompts": [{"source": "a.pt"}, {"source": "b.pt"}],
}


def _open(folder: Path, beside: object):
    path = folder / "net.pt"
    save_checkpoint(from_state_dict({"a.weight": torch.ones(4, 4)}, "net"), path, {})
    sidecar(path).write_text(json.dumps(beside))
    return Host.installed().open(str(path))


def test_what_was_chosen_and_lent_is_read_also_through_conversions(tmp_path) -> None:
    told = {"conversion": {"origin": {"conversion": {"origin": {"provenance": PROVENANCE}}}}}
    for beside in ({"provenance": PROVENANCE}, told):
        found = initial_weights(_open(tmp_path, beside))
        assert found is not None
        assert found.chosen == "transfer from a.pt (graft)"
        assert found.prompts == ("a.pt", "b.pt")


def test_a_default_has_no_prompts(tmp_path) -> None:
    told = {**PROVENANCE, "recipe": {"kind": "default, classifier fitted"}}
    found = initial_weights(_open(tmp_path, {"provenance": told}))
    assert found is not None
    assert found.prompts == ()


@pytest.mark.parametrize(
    "beside",
    [
        [],
        {},
        {"provenance": 3},
        {"provenance": {"recipe": [], "scores": 7}},
        {"conversion": {"origin": "provenance"}},
    ],
)
def test_nonsense_says_nothing(tmp_path, beside) -> None:
    assert initial_weights(_open(tmp_path, beside)) is None


def test_a_module_and_tensors_have_no_file() -> None:
    host = Host.installed()
    assert initial_weights(host.open(torch.nn.Linear(4, 4))) is None
    assert initial_weights(from_state_dict({"a.weight": torch.ones(4, 4)}, "net")) is None
