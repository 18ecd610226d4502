"""Prompt networks from the caches of this machine: those that run, and are of a size to be lent from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

from sane_plugins.errors import SaneError, UsageError
from sane_plugins.formats import cached_networks
from sane_plugins.grafting import PromptNetwork

CACHE = "cache"  # as `--prompts` names it
_MOST = 8  # networks: each is run on the task's images
_MOST_VALUES = 100_000_000
_IMAGE_AXES = 4  # of a kernel that reads images
_MOST_SHOWN = 4


@dataclass(frozen=True)
class CachedPrompts:
    """The networks that were found and can lend, those nearest in size first, and notes on the others."""

    networks: tuple[PromptNetwork, ...]
    notes: tuple[str, ...]


def cached_prompts(read: Callable[[str], PromptNetwork], values: int) -> CachedPrompts:
    """Read the networks in torch's and Hugging Face's caches; `values` is the size of the target.

    Raises `UsageError` where none of them can run.
    """
    sources = cached_networks()
    found: list[PromptNetwork] = []
    unread, unfit = [], []
    for source in sources:
        try:
            network = read(source)
        except SaneError as error:
            unread.append(f"{source} ({error.found})")
            continue
        if _can_lend(network):
            found.append(network)
        else:
            unfit.append(source)
    found.sort(key=lambda network: abs(log(network.graph.size / values)))
    if not found:
        raise UsageError(
            "--prompts cache",
            f"{len(sources)} networks lie in torch's and Hugging Face's caches on this machine, and none"
            " is an image network of an architecture that is known",
            "one is needed",
            "name a file, or install the extra 'prompts'",
        )
    left = [network.info.name for network in found[_MOST:]]
    notes = [
        *_note(unread, "could not be read"),
        *_note(unfit, "are no image networks of a known architecture and up to 100 M values"),
        *_note(left, "are further from the network in size, and left out"),
        *(text for network in found[:_MOST] for text in network.notes),
    ]
    return CachedPrompts(tuple(found[:_MOST]), tuple(notes))


def _can_lend(network: PromptNetwork) -> bool:
    kernels = any(len(param.shape) == _IMAGE_AXES for param in network.graph.params)
    return network.build is not None and kernels and network.graph.size <= _MOST_VALUES


def _note(names: Sequence[str], what: str) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return [f"in the caches, {', '.join(names[:_MOST_SHOWN])}{more} {what}"]
