"""What is recorded while a network runs: steps, nodes, and what is known of each tensor.

The method: docs/explanation/sane.md, section 11.4.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from sane_plugins.grafting.transformers.tracing.channel_nodes import UNKNOWN, ChannelNodes
from sane_plugins.grafting.transformers.tracing.steps import ImageStep, Step
from sane_plugins.grafting.transformers.tracing.traced_values import (
    Activation,
    Known,
    whole_parameter,
)

SOFTMAX = ("_softmax", "_safe_softmax")
FUSED_ATTENTION = "_scaled_dot_product"  # how torch's operators for it begin


class RunRecord:
    """The record of one run. `grid` is the (height, width) that cells count, of the latest map.

    `scores` holds, for steps that are products of queries and keys, the nodes (..., C) of both and what the
    products were multiplied by.
    """

    def __init__(self, module: nn.Module, images: torch.Tensor) -> None:
        parameters = dict(module.named_parameters())
        self.shapes = {key: tuple(p.shape) for key, p in parameters.items()}
        self.nodes = ChannelNodes(self.shapes)
        self.steps: list[Step] = []
        self.call = -1  # number of the operator that runs
        self.scores: dict[int, tuple[torch.Tensor, torch.Tensor, float]] = {}
        # Tensors are held, so that no later one gets the id of a freed one.
        self._held: list[torch.Tensor] = list(parameters.values())
        self._known: dict[int, Known] = {
            id(p): whole_parameter(key, p.shape) for key, p in parameters.items()
        }
        _, channels, height, width = images.shape
        self.grid = (height, width)
        names = self.nodes.new(channels)
        pixels = torch.arange(height * width).view(height, width)
        self.set(
            images,
            Activation(
                channels=names.view(1, -1, 1, 1).expand(images.shape),
                cells=pixels.expand(images.shape),
                step=self.add(ImageStep(name="images", sources=(), inputs=names)),
                reads_image=True,
            ),
        )

    def find(self, tensor: torch.Tensor) -> Known | None:
        """Return what is known of a tensor."""
        return self._known.get(id(tensor))

    def set(self, tensor: torch.Tensor, known: Known) -> None:
        """Note what is known of a tensor."""
        self._held.append(tensor)
        self._known[id(tensor)] = known

    def add(self, step: Step) -> int:
        """Add a step; return its number."""
        self.steps.append(replace(step, call=self.call))
        return len(self.steps) - 1

    def inherit_scores(self, step: int, later: int, factor: float = 1.0) -> None:
        """Note that a later step holds the scores of an earlier one, multiplied by a factor."""
        if step in self.scores:
            queries, keys, before = self.scores[step]
            self.scores[later] = queries, keys, before * factor

    def on_grid(self, channels: torch.Tensor, result: torch.Tensor, step: int) -> Activation:
        """Return what is known of a map with these channels, whose places are now what cells count."""
        cells = torch.full(result.shape, UNKNOWN)
        if result.dim() == 4:
            height, width = result.shape[2:]
            self.grid = (height, width)
            cells = torch.arange(height * width).view(height, width).expand(result.shape)
        return Activation(channels=channels, cells=cells, step=step)
