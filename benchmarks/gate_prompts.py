"""Prompts of the gate's runs: of zoos and from files, and spoilt ones, which no gate should trust."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from sane_plugins.architectures import mlp, small_cnn, wide_cnn
from sane_plugins.generation import choose_prompts
from sane_plugins.grafting import PromptNetwork
from sane_plugins.host import Host
from sane_plugins.weights import WeightGraph, from_module, load_into
from sane_plugins.zoo import Zoo

SMALL: Mapping[str, Callable[..., nn.Module]] = {
    "small_cnn": small_cnn,
    "tanh": partial(small_cnn, act="tanh"),
    "wide_cnn": wide_cnn,
    "mlp": mlp,
}
RESNET_20 = "checkpoints/akamaster_pytorch_resnet_cifar10/resnet20-12fca82f.th"


class SmallSpec(Protocol):
    """What of a run decides its prompts."""

    @property
    def dataset(self) -> str: ...
    @property
    def network(self) -> str: ...
    @property
    def prompts(self) -> str: ...
    @property
    def seed(self) -> int: ...


@lru_cache(maxsize=1)
def files(data: Path) -> dict[str, PromptNetwork]:
    """Return the prompt networks of the real runs, read from files as a user gives them."""
    host = Host.installed()
    return {
        "resnet20": host.prompt_network(str(data / RESNET_20)),
        "lite0": host.prompt_network("efficientnet-lite0"),
    }


def spoilt(network: PromptNetwork, kind: str, seed: int) -> PromptNetwork:
    """Return a prompt network as it is (`trained`), as drawn (`untrained`), or with the values of tensors shuffled."""
    if kind == "trained":
        return network
    assert network.build is not None  # these are networks that run
    module = network.build()
    if kind == "untrained":
        torch.manual_seed(seed)
        for submodule in module.modules():
            if callable(reset := getattr(submodule, "reset_parameters", None)):
                reset()
    else:
        load_into(module, shuffled(from_module(module), seed))
    graph = from_module(module, f"{network.info.name}, {kind}")

    def build() -> nn.Module:
        assert network.build is not None
        copied = network.build()
        copied.load_state_dict(module.state_dict())
        return copied.eval()

    return replace(network, graph=graph, build=build)


def zoo_prompts(spec: SmallSpec, zoos: list[Zoo]) -> list[WeightGraph]:
    """Return prompts of zoos on other data sets, spoilt as the run asks."""
    target = SMALL[spec.network](1, 10)
    left_out = {"animal_mnist": "animals-cnn", "mnist": "mnist"}.get(spec.dataset, "none")
    fit = [zoo for zoo in zoos if not zoo.name.startswith(left_out)]
    fit = [zoo for zoo in fit if zoo.name.endswith("mlp") == (spec.network == "mlp")] or fit
    if spec.prompts == "barely trained":
        fit = [zoo.where(lambda entry: float(entry.properties["epoch"]) <= 2) for zoo in fit]
    graphs = [graph for zoo in fit for graph in choose_prompts(target, zoo, 6).graphs]
    if spec.prompts == "untrained":
        torch.manual_seed(spec.seed)
        return [from_module(SMALL[spec.network](1, 10), f"untrained {i}") for i in range(6)]
    if spec.prompts == "shuffled":
        return [shuffled(graph, spec.seed) for graph in graphs]
    return graphs


def shuffled(graph: WeightGraph, seed: int) -> WeightGraph:
    """Return a network whose tensors hold their values in another order."""
    rng = torch.Generator().manual_seed(seed)
    return graph.replace(
        {
            p.key: t.flatten()[torch.randperm(t.numel(), generator=rng)].view_as(t)
            for p, t in graph.items()
        }
    )
