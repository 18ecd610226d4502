"""Prompts that were never trained, in whole or in part, or are broken, are told before the work."""

import torch
from torch import nn

from sane_plugins.architectures import small_cnn
from sane_plugins.formats import from_state_dict
from sane_plugins.generation import embedded_prompts
from sane_plugins.grafting import PromptInfo, PromptNetwork
from sane_plugins.prompts import network_of_module, untrained_notes
from sane_plugins.weights import WeightGraph


def _prompt(graph: WeightGraph, name: str) -> PromptNetwork:
    return PromptNetwork(graph=graph, info=PromptInfo(name=name))


def _trained() -> WeightGraph:
    zoo = embedded_prompts()
    return zoo.graph(zoo.entries[0])


def test_a_trained_network_gives_no_note() -> None:
    assert untrained_notes([_prompt(_trained(), "mine")]) == []


def test_fresh_weights_are_told_and_more_plainly_of_a_name() -> None:
    networks = [network_of_module(small_cnn(3), PromptInfo(name=x)) for x in ("a", "b", "c")]
    files, name = untrained_notes(networks, built=["c"])
    assert files.startswith("prompts a, b: weights that look never trained")
    assert name.startswith("prompt c: a name, built with fresh weights")
    assert "name a file" in files
    assert "--prompts cache" in name


def test_broken_and_half_trained_weights_are_told() -> None:
    graph = _trained()
    key = next(p.key for p in graph.params if len(p.shape) == 4)
    broken = graph.tensors[key].clone()
    broken.view(-1)[0] = torch.nan
    torch.manual_seed(0)
    half = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)).state_dict()
    half["2.weight"] = half["2.weight"] @ half["2.weight"] + 1
    half["2.bias"] = torch.linspace(0, 3, 64)
    notes = untrained_notes(
        [
            _prompt(graph.replace({key: broken}), "x.pt"),
            _prompt(from_state_dict(half, "half"), "half.pt"),
        ]
    )
    assert notes[0].startswith("prompt x.pt: broken weights (1 value of ")
    assert notes[1].startswith("prompt half.pt: weights that look trained only in part (2 layers")
    assert "while 1 layer is trained" in notes[1]
