"""The steps of a traced run that matter for transfer: what was multiplied, normalised, added, attended.

A step names the steps whose results it read (`sources`) by their places in the run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Step:
    """Any function of values; `name` is torch's for it, `call` counts the operators before it."""

    name: str
    sources: tuple[int, ...]
    call: int = -1


@dataclass(frozen=True, kw_only=True)
class ImageStep(Step):
    """The images themselves; `inputs` are the nodes of their channels."""

    inputs: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class ContractionStep(Step):
    """A linear layer or convolution, or a part of one.

    `rows` and `columns` are the entries of the weight's axes `row_axis` and `column_axis` that were used,
    `inputs` the node of what each column multiplies and `outputs` that of what each row makes. `pixels`,
    where the images were read by a linear layer, holds row and column of the pixel of each column, counted
    from the patch's first.
    `groups` is a convolution's, `grid` its (height, width). `is_token_major` says that rows of its input run
    over all images' first tokens first.
    """

    key: str
    row_axis: int
    column_axis: int
    rows: torch.Tensor
    columns: torch.Tensor
    inputs: torch.Tensor
    outputs: torch.Tensor
    bias: str | None = None
    bias_entries: torch.Tensor | None = None
    reads_image: bool = False
    pixels: tuple[torch.Tensor, torch.Tensor] | None = None
    groups: int = 1
    grid: tuple[int, int] | None = None
    is_token_major: bool = False


@dataclass(frozen=True, kw_only=True)
class NormStep(Step):
    """A norm with its scale and shift, if it has them; `channels` are the nodes that it reads."""

    weight: str | None
    bias: str | None
    channels: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class VectorStep(Step):
    """Channels times or plus a parameter's numbers: layer scale, or a bias of its own (`is_factor` says)."""

    key: str
    is_factor: bool


@dataclass(frozen=True, kw_only=True)
class TableStep(Step):
    """A parameter with a number for each channel and place, added to tokens.

    `axis` is that of its channels; `cells` says for each of its places, in the order of its other axes,
    where it lies in the patch grid, or -1: a class or register token.
    """

    key: str
    axis: int
    cells: torch.Tensor
    grid: tuple[int, int] | None


@dataclass(frozen=True, kw_only=True)
class TokenStep(Step):
    """A parameter that is a token by itself: class token, registers."""

    key: str
    axis: int


@dataclass(frozen=True, kw_only=True)
class SumStep(Step):
    """The sum of two values; `channels` are the nodes along the axis of their channels.

    `cells` says for each token where it lies in the patch grid (height, width) `grid`, or -1.
    """

    channels: torch.Tensor
    cells: torch.Tensor
    grid: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class AttentionStep(Step):
    """Softmax attention. `queries`, `keys` and `values` are nodes (heads, channels of a head).

    `factor` is what a query's product with a key is multiplied by before the softmax.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    factor: float
