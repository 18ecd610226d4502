"""Graphs that we make hold together, whatever a module or a file says."""

import pytest
import torch
from networks import HAND_MADE
from torch import nn
from torch.nn import functional as F

from sane_plugins import Host
from sane_plugins.errors import SourceError
from sane_plugins.formats import from_state_dict
from sane_plugins.testing import example_graphs
from sane_plugins.weights import WeightGraph, find_fault, from_module, require_valid


class _Calls(nn.Module):
    """A module that does to its input what torch refuses when it runs."""

    def __init__(self, call) -> None:
        super().__init__()
        self.linear, self.call = nn.Linear(4, 4), call

    def forward(self, x):
        return self.call(self.linear(x))


IMPOSSIBLE = {
    "flatten": lambda x: torch.flatten(x, 99),
    "permute": lambda x: x.permute(0, 0, 1),
    "transpose": lambda x: x.transpose(1, 99),
    "squeeze": lambda x: x.squeeze(-70),
    "concat": lambda x: torch.cat([x, x], 77),
    "conv": lambda x: F.conv2d(x, x, None, 1, 0, 1, 0),
    "group_norm": lambda x: F.group_norm(x, -2),
    "mean": lambda x: x.mean((1, 99)),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_calls_that_cannot_run_are_opaque(name: str) -> None:
    graph = from_module(_Calls(IMPOSSIBLE[name]))
    assert find_fault(graph) is None
    assert any(layer.kind == "opaque" for layer in graph.layers)


@pytest.mark.parametrize("name", HAND_MADE)
def test_modules_hold_together(name: str) -> None:
    assert find_fault(from_module(HAND_MADE[name]())) is None


def test_axes_and_groups_that_do_not_fit_are_not_said() -> None:
    wide = {"a.weight": torch.ones(4, 8), "a.bias": torch.ones(4)}
    assert find_fault(from_state_dict(wide, "a file", axes={"a.weight": 1})) is None
    module = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
    module[0].groups = 3
    assert find_fault(from_module(module)) is None


def test_a_wrong_graph_of_the_caller_is_told_as_its_own() -> None:
    graph = example_graphs()[0]
    wrong = WeightGraph(source="mine", layers=graph.layers, tensors={})
    for call in (require_valid, Host.installed().encode):
        with pytest.raises(SourceError, match=r"mine, layer '0': `tensors` has no '0\.weight'"):
            call(wrong)
