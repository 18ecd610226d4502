"""Masks that NNCF keeps beside the tensors that it prunes, by the names of its releases 3.

A tensor keeps its name and values; a module of hooks beside the network's own multiplies it by the mask in
each forward pass (`nncf.torch.function_hook.pruning`). Names are those of `HookStorage`, dots as colons.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from sane_plugins.weights.module_tensors.computed_tensors import Pruned

_MASK = re.compile(
    r"(?P<owner>(?:.*\.)?)__nncf_hooks\.post_hooks\.(?P<tensor>[^.]+)__0\.\d+\.(?P<part>binary_mask|mask)"
)


@dataclass(frozen=True)
class LearnedPruned(Pruned):
    """A mask whose entries are learned numbers: what is above zero stays."""

    def value(self, *sources: torch.Tensor) -> torch.Tensor:
        """Return the original where the mask is above zero, else zero."""
        original, mask = sources
        return original * (mask > 0)

    def invert(self, value: torch.Tensor, *sources: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the value where it shows and the original where not, and the same mask."""
        original, mask = sources
        return torch.where(mask > 0, value, original).to(original.dtype), mask


def nncf_masked(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Pruned]:
    """Yield the tensors among these that have a mask of their own shape; there may be one for each."""
    seen = set()
    for key, shape in shapes.items():
        found = _MASK.fullmatch(key)
        name = found and found["owner"] + found["tensor"].replace(":", ".")
        if not found or not name or shapes.get(name) != shape or name in seen:
            continue
        seen.add(name)
        kind = Pruned if found["part"] == "binary_mask" else LearnedPruned
        yield kind(name, (name, key))
