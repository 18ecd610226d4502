"""The networks that plugins are tried on: small, of several architectures, the same in every run."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sane_plugins.weights import WeightGraph

_PROMPTS = 3


def example_graphs() -> list[WeightGraph]:
    """Return networks that a file format should keep, the plainest first.

    A small CNN, one with a norm and its counter, one with grouped convolutions, one whose last matrix is its
    table of words (a tie), and perceptrons of float16 and of bfloat16.
    """
    from sane_plugins.weights import from_module

    return [from_module(module, name) for name, module in _modules().items()]


def _modules() -> dict[str, nn.Module]:
    from torch import nn

    from sane_plugins.architectures import small_cnn
    from sane_plugins.runtime import random_stream, seeded

    with seeded(random_stream(0, "contract")):
        return {
            "small CNN": small_cnn(channels_in=1, classes=10),
            "CNN with a norm": nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5)
            ),
            "CNN of groups": nn.Sequential(
                nn.Conv2d(3, 8, 3),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, groups=4),
                nn.GroupNorm(2, 8),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, groups=8, bias=False),
                nn.Flatten(),
                nn.Linear(72, 5),
            ),
            "network of tied tables": _tied_tables(),
            "perceptron of halves": _perceptron().half(),
            "perceptron of bfloat16": _perceptron().bfloat16(),
        }


def _perceptron() -> nn.Module:
    from torch import nn

    return nn.Sequential(nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3))


def _tied_tables() -> nn.Module:
    """Return a module whose last matrix is its table, as language models have it."""
    from torch import nn

    network = nn.Sequential(
        nn.Embedding(9, 6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 9, bias=False)
    )
    network[3].weight = network[0].weight
    return network


@cache
def example_latents() -> torch.Tensor:
    """Return the latents (N, T, L) of small networks of one architecture, by the shipped SANE."""
    import torch

    from sane_plugins.architectures import small_cnn
    from sane_plugins.features import embed
    from sane_plugins.runtime import random_stream, seeded
    from sane_plugins.weights import from_module

    latents = []
    for i in range(_PROMPTS):
        with seeded(random_stream(i, "contract")):
            network = small_cnn(channels_in=1, classes=10)
        found = embed(from_module(network, f"small CNN {i}")).latents
        assert found is not None, "latents are kept by default"
        latents.append(found)
    return torch.stack(latents)
