"""What names and shapes leave open of a recognised prompt: as what it is run, and how it was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from sane_plugins.errors import SaneError
from sane_plugins.grafting import PromptInfo, PromptNetwork
from sane_plugins.recognition import ArchitectureCandidate

_SIZES = (64, 128, 224)  # pixels; some architectures take one size only
_CHANNELS = 3
_MOST_COMPARED = 3
_MOST_VALUES = 200_000_000  # of a network that is run once more for each
_TOLERANCE = 1e-3  # of the outputs' deviation: another order of sums does less, other padding more
Alternative = tuple[ArchitectureCandidate, PromptNetwork]


def notes_on_alternatives(
    network: PromptNetwork, candidate: ArchitectureCandidate, others: Sequence[Alternative]
) -> tuple[str, ...]:
    """Return a note where other architectures have a file's names and shapes, and compute otherwise.

    The first few get the same weights, and are compared on random images: padding, activations and what norms
    add to variances are not told by shapes. What cannot be built or run here is left out.
    """
    if not others or network.graph.size > _MOST_VALUES:
        return ()
    channels = candidate.counts.channels or _CHANNELS
    expected = _outputs(network, channels)
    doubtful = []
    for other, alternative in others[:_MOST_COMPARED]:
        try:
            found = _outputs(alternative, channels)
        except SaneError:
            continue
        if expected is not None and found is not None and not _are_alike(expected, found):
            doubtful.append(other.label)
    if not doubtful:
        return ()
    have, compute = ("has", "computes") if len(doubtful) == 1 else ("have", "compute")
    return (
        f"{network.info.name} is run as {candidate.label}; {' and '.join(doubtful)} {have} the same shapes"
        f" and {compute} otherwise: --factory says which is right",
    )


def info_of_published(
    info: PromptInfo, published: PromptInfo, classes: int | None
) -> tuple[PromptInfo, str]:
    """Return what is known of a file of a published network's names and shapes, and a note that says so.

    What `info` says of it goes first. `classes` is its number of classes, None for the published one.
    """
    preparation = info.preparation or published.preparation
    if classes is not None or info.classes:
        told = replace(info, preparation=preparation)
        what = "the preparation of its images is taken to be that"
    else:
        told = replace(published, name=info.name, source=info.source, preparation=preparation)
        what = "its training data, licence and preparation of images are taken to be those"
    return told, f"{info.name}: {what} of {published.name}, whose names and shapes it has"


def _outputs(network: PromptNetwork, channels: int) -> torch.Tensor | None:
    """Return a network's outputs for random images of the first size that it takes.

    Raises `SaneError` where it cannot be built.
    """
    assert network.build is not None
    module, generator = network.build(), torch.Generator().manual_seed(0)
    for size in _SIZES:
        images = torch.randn(2, channels, size, size, generator=generator)
        try:
            return _first_tensor(module, images)
        except Exception:  # any layer may refuse a shape, each in its own words
            continue
    return None


@torch.no_grad()
def _first_tensor(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    outputs = module(images)
    result: torch.Tensor = outputs if isinstance(outputs, torch.Tensor) else next(iter(outputs))
    return result


def _are_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return bool((one - other).abs().max() <= _TOLERANCE * one.std())
