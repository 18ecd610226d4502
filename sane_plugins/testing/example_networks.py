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
    """Return a small CNN, one with norms and counters, and a perceptron in half precision."""
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
            "perceptron of halves": nn.Sequential(
                nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3)
            ).half(),
        }


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
