"""Run a network on the meta device: which weights read the images, how far it gets, the output shape.

A symbolic trace does not suffice: detection and optical flow networks branch on their inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from sane_plugins.runtime import drawing_from, without_warnings
from sane_plugins.weights import evaluation_copy

_IMAGE_SIZES = (224, 128, 256, 384, 160, 512)  # pixels; some networks take one size only
_VIDEO_FRAMES = 16


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """`readers` are the weights applied to the images first, `steps` counts the uses of weights.

    `output` is the shape of the first output, and empty where the run failed.
    """

    channels: int
    image_size: tuple[int, int]
    readers: tuple[str, ...]
    steps: int
    output: tuple[int, ...]


def run_on_meta(
    module: nn.Module, channels: int, image_size: int | tuple[int, int] | None = None
) -> DryRun:
    """Run a network on meta tensors, by default at several image sizes; return the run that got furthest.

    An image size is (height, width) in pixels, or both in one number.
    """
    sizes = _IMAGE_SIZES if image_size is None else (image_size,)
    best = None
    for pixels in sizes:
        run = _run(module, channels, (pixels, pixels) if isinstance(pixels, int) else pixels)
        if run.output:
            return run
        if best is None or run.steps > best.steps:
            best = run
    assert best is not None  # there are sizes
    return best


def _run(module: nn.Module, channels: int, image_size: tuple[int, int]) -> DryRun:
    module = evaluation_copy(module)
    state = {
        key: torch.empty_like(tensor, device="meta")
        for key, tensor in [*module.named_parameters(), *module.named_buffers()]
    }
    is_video = any(isinstance(part, nn.Conv3d) for part in module.modules())
    shape = (1, channels, *((_VIDEO_FRAMES,) if is_video else ()), *image_size)
    images = [torch.empty(shape, device="meta") for _ in range(image_count(module))]
    tracker = _ImageTracker(state, images)
    output: tuple[int, ...] = ()
    draws = drawing_from(torch.Generator())
    # Any code runs in a forward, so anything may be raised there; how far it got is the answer.
    with suppress(Exception), without_warnings(), draws, torch.no_grad(), tracker:
        output = first_shape(functional_call(module, state, tuple(images)))
    return DryRun(
        channels=channels,
        image_size=image_size,
        readers=tuple(tracker.readers),
        steps=tracker.steps,
        output=output,
    )


class _ImageTracker(TorchFunctionMode):
    """Tracks the images through functions until one applies weights to them."""

    def __init__(self, weights: Mapping[str, torch.Tensor], images: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.readers: dict[str, None] = {}
        self.steps = 0
        self._keys = {id(tensor): key for key, tensor in weights.items()}
        # Held, so that no later tensor gets the id of a freed one.
        self._images = {id(image): image for image in images}

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the function, and record whether weights or images are among its inputs."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is torch.Tensor.__iter__:
            parts = list(result)
            result = iter(parts)
        else:
            parts = list(_tensors(result))
        inputs = list(_tensors((args, kwargs)))
        weights = [self._keys[id(tensor)] for tensor in inputs if id(tensor) in self._keys]
        reads_image = any(id(tensor) in self._images for tensor in inputs)
        self.steps += bool(weights and parts)
        if reads_image and weights and parts:
            self.readers[weights[0]] = None
        elif reads_image:
            self._images.update((id(part), part) for part in parts)
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


def first_shape(value: Any) -> tuple[int, ...]:
    """Return the shape of the first tensor in what a network returns; empty where there is none."""
    return tuple(next((tensor.shape for tensor in _tensors(value)), ()))


def image_count(module: nn.Module) -> int:
    """Return how many images the forward takes: two for optical flow."""
    parameters = signature(module.forward).parameters.values()
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return max(1, sum(p.kind in kinds and p.default is Parameter.empty for p in parameters))
