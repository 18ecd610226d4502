"""Tensors that a module's hooks compute before each forward pass: torch's pruning, and its older norms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from sane_plugins.weights.module_tensors.computed_tensors import (
    ComputedTensor,
    ComputedTensors,
    Pruned,
    SpectrallyNormed,
    WeightNormed,
)


def hooked_tensors(part: nn.Module) -> ComputedTensors:
    """Return the tensors that the hooks of one module compute, by attribute."""
    found = (_computed(hook) for hook in part._forward_pre_hooks.values())
    return ComputedTensors(
        [x for x in found if x is not None], lambda name: getattr(part, name).detach()
    )


def renew(part: nn.Module, attribute: str) -> None:
    """Compute an attribute, and those it is computed from: they are stale until the next forward pass."""
    for hook in part._forward_pre_hooks.values():
        computed = _computed(hook)
        if computed is None or computed.name != attribute:
            continue
        for source in computed.sources:
            renew(part, source)
        with torch.enable_grad():
            if isinstance(hook, SpectralNorm):  # the hook itself would iterate in training
                setattr(part, attribute, hook.compute_weight(part, do_power_iteration=False))
            else:
                hook(part, None)


def _computed(hook: Callable[..., object]) -> ComputedTensor | None:
    if isinstance(hook, BasePruningMethod):
        name = str(hook._tensor_name)
        return Pruned(name, (f"{name}_orig", f"{name}_mask"))
    if isinstance(hook, WeightNorm):
        return WeightNormed(hook.name, (f"{hook.name}_g", f"{hook.name}_v"), hook.dim)
    if isinstance(hook, SpectralNorm):
        sources = tuple(f"{hook.name}_{part}" for part in ("orig", "u", "v"))
        return SpectrallyNormed(hook.name, sources, (hook.dim,))
    return None
