"""Scale up weights in front of norms, so that an optimiser's first steps do not overwrite them.

Steps of Adam have a size of their own, whatever the weights'. What a norm reads may be scaled, which changes
nothing but how far a step turns the weights.
The method: docs/explanation/sane.md, section 16.3.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def protect_scale(
    module: nn.Module,
    norms: Mapping[str, str],
    default: Mapping[str, torch.Tensor],
    factor: float,
) -> tuple[str, ...]:
    """Scale weights up to `factor` times the deviation of the default's; return the names of those layers.

    `norms` names the batch norm behind each layer, `default` holds the fresh network's tensors. Weights that
    deviate more stay. The network computes the same in evaluation mode: scale and shift of the norms make up
    for the small number that they add to variances.
    """
    modules = dict(module.named_modules())
    scaled = []
    for name, norm_name in norms.items():
        layer, norm, key = modules[name], modules[norm_name], f"{name}.weight"
        weight = layer._parameters.get("weight")
        if weight is None or key not in default or not _is_adjustable(norm):
            continue
        own, wanted = (
            float(weight.std(correction=0)),
            factor * float(default[key].std(correction=0)),
        )
        if not 0.0 < own < wanted:
            continue
        _scale(layer, norm, wanted / own)
        scaled.append(name)
    return tuple(scaled)


def _is_adjustable(norm: nn.Module) -> bool:
    if not isinstance(norm, _BatchNorm):
        return False
    return norm.running_mean is not None and norm.running_var is not None and norm.affine


def _scale(layer: nn.Module, norm: _BatchNorm, by: float) -> None:
    for parameter in (layer.weight, layer.bias):
        if isinstance(parameter, torch.Tensor):
            parameter.mul_(by)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    norm.weight.mul_(((by**2 * variance + norm.eps) / (by**2 * (variance + norm.eps))).sqrt())
    mean.mul_(by)
    variance.mul_(by**2)
