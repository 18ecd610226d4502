"""Write one tensor into a module so that a forward pass in evaluation uses it, through what computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from sane_plugins.errors import SourceError
from sane_plugins.runtime import seeded
from sane_plugins.weights.module_tensors.computed_tensors import (
    WeightNormed,
    as_matrix,
    unit_vectors,
)
from sane_plugins.weights.module_tensors.hooked_tensors import hooked_tensors, renew
from sane_plugins.weights.module_tensors.reading import ModuleTensor


def is_computed(entry: ModuleTensor) -> bool:
    """Return whether a tensor is computed from others on each forward pass."""
    if entry.masked:
        return True
    is_parametrized: bool = parametrize.is_parametrized(entry.module, entry.attribute)
    return is_parametrized or entry.attribute in hooked_tensors(entry.module).by_name


def computes_tensors(module: nn.Module) -> bool:
    """Return whether a module computes some of its tensors from others, so that its names are not theirs."""
    return any(
        parametrize.is_parametrized(part) or hooked_tensors(part).by_name
        for part in module.modules()
    )


def write_module_tensor(entry: ModuleTensor, tensor: torch.Tensor) -> None:
    """Write a tensor, or what comes nearest where it is computed and cannot be all values.

    What gives the value already stays as it is. Raises `SourceError` where a parametrisation has no inverse.
    """
    module, attribute = entry.module, entry.attribute
    if parametrize.is_parametrized(module, attribute):
        if not torch.equal(entry.value, tensor):
            _write_parametrized(entry, tensor)
        return
    for name, value in hooked_tensors(module).stored_values(attribute, tensor).items():
        stored = getattr(module, name)
        if not isinstance(stored, torch.Tensor):
            raise SourceError(
                entry.key,
                f"a {type(module).__name__} holds it in a form of its own",
                "a parameter or buffer is written",
                "load the weights before the module is converted",
            )
        stored.copy_(value)
    renew(module, attribute)


def _write_parametrized(entry: ModuleTensor, tensor: torch.Tensor) -> None:
    steps: Any = entry.module.parametrizations[entry.attribute]  # type: ignore[index]
    originals = (
        [steps.original]
        if steps.is_tensor
        else [getattr(steps, f"original{i}") for i in range(steps.ntensors)]
    )
    try:
        # An inverse may draw, as that of an orthogonal matrix does: the same weights, the same state.
        with seeded(torch.Generator().manual_seed(0)):
            inverse = _inverse([*steps], tensor)
        values = [inverse] if isinstance(inverse, torch.Tensor) else inverse
        for original, value in zip(originals, values, strict=True):
            original.copy_(value)
    except Exception as error:  # right_inverse is anyone's code, so anything may be raised there
        raise SourceError(
            entry.key,
            "its parametrisation has no inverse",
            "a written value must survive it",
            "remove it with torch.nn.utils.parametrize.remove_parametrizations first",
        ) from error


def _inverse(steps: Sequence[nn.Module], value: torch.Tensor) -> Any:
    """Return what parametrisations make this value of; torch's inverses neglect vectors and zero rows."""
    inverse: Any = value
    for step in reversed(steps):
        if isinstance(step, parametrizations._SpectralNorm) and inverse.ndim > 1:
            u, v = unit_vectors(as_matrix(inverse, step.dim))
            step._u.copy_(u)
            step._v.copy_(v)
        elif isinstance(step, parametrizations._WeightNorm):
            inverse = WeightNormed("", (), step.dim).invert(inverse)
        else:
            inverse = step.right_inverse(inverse)  # type: ignore[operator]
    return inverse
