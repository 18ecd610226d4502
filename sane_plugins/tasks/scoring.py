"""Evaluation of a network on a task: predictions, accuracy and cost."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._python_dispatch import _pop_mode, _push_mode
from torch.utils.flop_counter import FlopCounterMode, _FlopCounterMode

_BATCH_SIZE = 250


@torch.no_grad()
def accuracy(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the accuracy on images (N, C, H, W) with labels y (N,), in evaluation mode."""
    return int(correct(module, x, y).sum()) / len(y)


@torch.no_grad()
def correct(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return which images are classified correctly, (N,) bool, in evaluation mode.

    Where the largest logit is NaN or infinite nothing is told, so the image is not.
    """
    module.eval()
    outputs = [logits(module, images) for images in x.split(_BATCH_SIZE)]
    predictions = torch.cat([output.argmax(1) for output in outputs])
    tells = torch.cat([output.amax(1).isfinite() for output in outputs])
    return (predictions == y) & tells


def logits(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the network's logits: its output, or the first of several (auxiliary classifiers)."""
    output = module(images)
    return output if isinstance(output, torch.Tensor) else output[0]


class _NoModules:
    """In place of the counter's list of modules, kept by hooks that modules of all threads would call."""

    parents = frozenset({"Global"})


class _Counting(_FlopCounterMode):
    """Counts in the calling thread; the base notes in variables of the process that it is on."""

    def __enter__(self) -> _Counting:
        _push_mode(self)
        return self

    def __exit__(self, *_: object) -> None:
        _pop_mode()


def forward_flops(module: nn.Module, images: torch.Tensor) -> int:
    """Return the FLOPs of a forward pass on images (N, C, H, W), at least 1."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with _Counting(counter), torch.no_grad():
        module.eval()(images)
    return max(1, int(counter.get_total_flops()))
