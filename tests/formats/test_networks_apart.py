"""Several networks in one file: one is read, the others are missed and named."""

from collections import OrderedDict
from itertools import pairwise

import pytest
import torch
from torch import nn

from sane_plugins.formats import open_file, save_safetensors
from sane_plugins.inspection import survey_network


def state(*sizes: int) -> dict[str, torch.Tensor]:
    """Return the state dict of a chain of linear layers."""
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return dict(nn.Sequential(*layers).state_dict())


HALF = state(6, 8, 4)  # 92 values
SMALL = state(3, 2)  # 8
MODULE = nn.Linear(5, 4)  # 24
CODES = {
    "l.qweight": torch.ones(8, 8, dtype=torch.int32),
    "l.scales": torch.rand(2, 8),
    "l.qzeros": torch.zeros(2, 1, dtype=torch.int32),
}
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(999)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    ("content", "size", "missed"),
    [
        ({"encoder": HALF, "decoder": {k: x + 1 for k, x in HALF.items()}}, 92, {"decoder": 92}),
        ({"netG": HALF, "netD": SMALL, "optG": OPTIMIZER}, 92, {"netD": 8}),
        ({"model": HALF, "ema": {k: x * 2 for k, x in HALF.items()}}, 92, {"ema": 92}),
        ({"model": HALF, "again": HALF}, 92, {}),  # the same tensors
        ({"model": HALF, "part": dict([*HALF.items()][:2])}, 92, {}),
        (
            {"models": [SMALL, HALF, SMALL | {"x": torch.ones(3)}]},
            92,
            {"models.0": 8, "models.2": 3},
        ),
        ({"a": {"b": SMALL}, "c": {"d": OrderedDict(HALF)}}, 92, {"a.b": 8}),
        ({"model": HALF, "optimizer": OPTIMIZER, "loss": torch.tensor(0.1)}, 92, {}),
        ({"model": HALF, "best": torch.tensor([0.9]), "seen": torch.arange(7)}, 92, {}),
        ({"model": HALF, "mean": torch.ones(3)}, 92, {"'mean'": 3}),
        ({"model": HALF, "quantized": CODES}, 92, {"quantized": 512}),
        ({"model": HALF, "other": {"w": torch.ones(3, dtype=torch.complex64)}}, 92, {"other": 3}),
        ({"model": HALF, "other": {"w": torch.ones(3, 3, dtype=torch.int8)}}, 92, {"other": 9}),
        ({"model": HALF, "other": {"w": torch.ones(5, device="meta")}}, 92, {"other": 5}),
    ],
)
def test_what_is_not_read_is_missed(content, size: int, missed, tmp_path) -> None:
    torch.save(content, tmp_path / "net.pt")
    graph = open_file(tmp_path / "net.pt")
    assert (graph.size, dict(graph.missed)) == (size, missed)
    assert graph.coverage == size / (size + sum(missed.values()))
    survey = survey_network(graph)
    assert survey.coverage == graph.coverage
    if missed:
        assert any(note.startswith("not read: ") for note in graph.notes)
        assert any("another network" in portion.reason for portion in survey.missed)
    again = open_file(save_safetensors(graph, tmp_path / "again.safetensors"))
    assert again.size == size


def test_the_largest_is_that_of_most_weights(tmp_path) -> None:
    """Codes count for what they are: eight in a word."""
    torch.save({"model": HALF, "quantized": {**CODES, **SMALL}}, tmp_path / "net.pt")
    graph = open_file(tmp_path / "net.pt")
    assert dict(graph.missed) == {"l.qweight": 512, "model": 92}
    assert graph.coverage == 8 / (8 + 512 + 92)


def test_the_case_of_the_issue_for_gptq(tmp_path) -> None:
    torch.save({**HALF, **CODES}, tmp_path / "net.pt")
    graph = open_file(tmp_path / "net.pt")
    assert dict(graph.missed) == {"l.qweight": 512}
    assert graph.coverage == 92 / 604
