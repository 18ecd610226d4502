"""Which tensors form a layer, and which are one: a single rule, so modules and their files agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from sane_plugins.weights.layers import Param, Role

NORM_ROLES: Mapping[str, Role] = {
    "weight": "scale",
    "bias": "shift",
    "running_mean": "running_mean",
    "running_var": "running_var",
}


def owner_of(key: str) -> str:
    """Return the layer that a tensor belongs to: its key without the last part, or a lone key itself."""
    return key.rpartition(".")[0] or key


def in_layer_order(params: Iterable[Param]) -> tuple[Param, ...]:
    """Return a layer's params with vectors last, so that a bias follows its matrix."""
    return tuple(sorted(params, key=lambda param: len(param.shape) < 2))


def memory(tensor: torch.Tensor) -> tuple[object, ...]:
    """Return what two tensors have in common exactly if they are the same values in the same memory."""
    if not tensor.numel() or tensor.is_meta or tensor.layout != torch.strided:
        return (id(tensor),)
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
