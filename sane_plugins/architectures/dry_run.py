"""Run a network on images without values: what reads the images, how far it gets, what comes out.

A symbolic trace would not do: detection networks and optical flow decide by their inputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

_SIDES = (224, 128, 256, 384, 160, 512)  # pixels; some networks take one side only
_FRAMES = 16


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """`readers` are the weights that meet the images, `steps` counts the uses of weights.

    `output` is the shape of the first tensor that comes out, and empty where the run failed.
    """

    channels: int
    side: int
    readers: tuple[str, ...]
    steps: int
    output: tuple[int, ...]


def try_out(module: nn.Module, channels: int, side: int | None = None) -> DryRun:
    """Return the run that gets furthest, over several sizes of images where none is given."""
    sides = _SIDES if side is None else (side,)
    best = None
    for pixels in sides:
        trial = _run(module, channels, pixels)
        if trial.output:
            return trial
        if best is None or trial.steps > best.steps:
            best = trial
    assert best is not None  # there are sizes
    return best


def _run(module: nn.Module, channels: int, side: int) -> DryRun:
    state = {
        key: torch.empty_like(tensor, device="meta")
        for key, tensor in [*module.named_parameters(), *module.named_buffers()]
    }
    video = any(isinstance(part, nn.Conv3d) for part in module.modules())
    shape = (1, channels, *((_FRAMES,) if video else ()), side, side)
    images = [torch.empty(shape, device="meta") for _ in range(_inputs(module))]
    watch = _Watch(state, images)
    output: tuple[int, ...] = ()
    with _evaluating(module), warnings.catch_warnings(), torch.no_grad(), watch:
        warnings.simplefilter("ignore")
        # Any code runs in a forward, so anything may be raised there; how far it got is the answer.
        with suppress(Exception):
            output = _first_shape(functional_call(module, state, tuple(images)))
    return DryRun(
        channels=channels, side=side, readers=tuple(watch.readers), steps=watch.steps, output=output
    )


class _Watch(TorchFunctionMode):
    """Follows the images until weights meet them."""

    def __init__(self, weights: Mapping[str, torch.Tensor], images: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.readers: dict[str, None] = {}
        self.steps = 0
        self._keys = {id(tensor): key for key, tensor in weights.items()}
        # Kept, so that no later tensor gets the id of one that is gone.
        self._raw = {id(image): image for image in images}

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the function, and note whether weights or images went in."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is torch.Tensor.__iter__:
            parts = list(result)
            result = iter(parts)
        else:
            parts = list(_tensors(result))
        given = list(_tensors((args, kwargs)))
        weights = [self._keys[id(tensor)] for tensor in given if id(tensor) in self._keys]
        raw = any(id(tensor) in self._raw for tensor in given)
        self.steps += bool(weights and parts)
        if raw and weights and parts:
            self.readers[weights[0]] = None
        elif raw:
            self._raw.update((id(part), part) for part in parts)
        return result


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _first_shape(value: Any) -> tuple[int, ...]:
    return tuple(next((tensor.shape for tensor in _tensors(value)), ()))


def _inputs(module: nn.Module) -> int:
    """Return how many images the network needs at once: two for optical flow."""
    known = signature(module.forward).parameters.values()
    places = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return max(1, sum(p.kind in places and p.default is Parameter.empty for p in known))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    try:
        for part in modes:
            part.training = False
        yield
    finally:
        for part, training in modes.items():
            part.training = training
