"""Run a network once and note of each convolution and linear layer when it runs and what goes through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules import conv
from torch.nn.modules.batchnorm import _BatchNorm

_IMAGES = 2
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The first call of a layer: the shapes of what it reads and returns (batch first)."""

    name: str
    module: nn.Module
    read: tuple[int, ...]
    returned: tuple[int, ...]
    is_output: bool


@torch.no_grad()
def executions(module: nn.Module, images: torch.Tensor) -> tuple[Execution, ...]:
    """Return the convolutions, linear layers and norms of a module in the order in which they run.

    images (N, C, H, W): the first two are run, in evaluation mode. `is_output` where a layer's output is
    the network's.
    """
    names = {part: name for name, part in module.named_modules()}
    calls: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

    def note(part: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if part not in calls and inputs and isinstance(output, torch.Tensor):
            calls[part] = (inputs[0], output)

    hooks = [
        part.register_forward_hook(note)
        for part in names
        if isinstance(part, (*CONVOLUTIONS, nn.Linear, *NORMS))
        and not isinstance(part, (torch.jit.ScriptModule, conv._ConvTransposeNd))
    ]
    try:
        with in_evaluation(module):
            output = module(images[:_IMAGES])
    finally:
        for hook in hooks:
            hook.remove()
    outputs = output if isinstance(output, tuple | list) else (output,)
    return tuple(
        Execution(
            name=names[part],
            module=part,
            read=tuple(read.shape),
            returned=tuple(returned.shape),
            is_output=any(returned is x or _is_equal(returned, x) for x in outputs[:1]),
        )
        for part, (read, returned) in calls.items()
    )


def _is_equal(one: torch.Tensor, other: Any) -> bool:
    return (
        isinstance(other, torch.Tensor)
        and one.shape == other.shape
        and bool(torch.equal(one, other))
    )


@contextmanager
def in_evaluation(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode within the block; each part's mode is as before afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
