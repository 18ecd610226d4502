"""Scale up weights, not changing what is computed, so that an optimizer's first steps do not overwrite them.

Steps of Adam have a size of their own, whatever the weights'. Where something else takes the factor back, a
weight may be scaled, which changes nothing but how far a step turns it.
The method: docs/explanation/sane.md, section 16.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sane_plugins.grafting.execution import NORMS, in_evaluation
from sane_plugins.grafting.fitting.residual_sum import residual_sums

_RELATIVE_ERROR = 1e-3  # beside the deviation of what the network computes, rounding is smaller


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
    assert mean is not None
    assert variance is not None
    norm.weight.mul_(((by**2 * variance + norm.eps) / (by**2 * (variance + norm.eps))).sqrt())
    mean.mul_(by)
    variance.mul_(by**2)


@torch.no_grad()
def protect_links(module: nn.Module, images: torch.Tensor, factor: float) -> int:
    """Multiply weights by `factor` wherever something takes it back; return how many such links there are.

    That is where a norm without running statistics reads a layer, where layers read such a norm, and where a
    learnt vector multiplies what a layer adds to a residual sum. Two of the images (N, C, H, W) are run: a
    link that would change the network's output for them is left as it was.
    """
    images = images[:2]
    with in_evaluation(module):
        links, wanted = _links(module, images), module(images)
        if not links:
            return 0
        for link in links:
            link.scale(factor)
        if _is_close(module(images), wanted):
            return len(links)
        for link in links:
            link.scale(1 / factor)
        return sum(_holds(link, module, images, wanted, factor) for link in links)


@dataclass(frozen=True)
class _Link:
    """Parameters of which some may grow where others shrink."""

    grow: tuple[nn.Parameter, ...]
    shrink: tuple[nn.Parameter, ...] = ()

    def scale(self, by: float) -> None:
        for parameter in self.grow:
            parameter.mul_(by)
        for parameter in self.shrink:
            parameter.div_(by)


def _holds(
    link: _Link, module: nn.Module, images: torch.Tensor, wanted: torch.Tensor, factor: float
) -> bool:
    """Scale one link; undo it, and return False, where the output changes."""
    link.scale(factor)
    holds = _is_close(module(images), wanted)
    if not holds:
        link.scale(1 / factor)
    return holds


def _is_close(output: torch.Tensor, wanted: torch.Tensor) -> bool:
    error = (output - wanted).square().mean()
    return bool(error <= _RELATIVE_ERROR**2 * wanted.var(correction=0))


def _links(module: nn.Module, images: torch.Tensor) -> list[_Link]:
    """Return what may be scaled: each parameter of a layer in one link at most before it, and one behind."""
    layers = {name: part for name, part in module.named_modules() if _matrices(part)}
    writes, reads = _neighbors(module, [*layers.values()], images)
    links = []
    for norm, writer in writes.items():
        if writer is not None:
            links.append(_Link(tuple(writer.parameters(recurse=False))))
        own = tuple(norm.parameters(recurse=False))
        if readers := reads.get(norm):
            links.append(_Link(tuple(w for x in readers for w in _matrices(x)), own))
    for found in residual_sums(module, images):
        if found.scale is not None:
            parameters = tuple(layers[found.layer].parameters(recurse=False))
            links.append(_Link(parameters, (found.scale,)))
    return links


def _matrices(part: nn.Module) -> tuple[nn.Parameter, ...]:
    return tuple(x for x in part.parameters(recurse=False) if x.ndim > 1)


def _neighbors(
    module: nn.Module, layers: Sequence[nn.Module], images: torch.Tensor
) -> tuple[dict[nn.Module, nn.Module | None], dict[nn.Module, list[nn.Module]]]:
    """Return the layer that each norm without running statistics reads, and the layers that read it.

    Who reads what is told by the memory that values lie in, which changes of layout leave.
    """
    makers: dict[int, nn.Module] = {}
    held: list[torch.Tensor] = []  # so that no memory is given out twice
    writes: dict[nn.Module, nn.Module | None] = {}
    reads: dict[nn.Module, list[nn.Module]] = {}

    def note(part: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not inputs or not isinstance(inputs[0], torch.Tensor):
            return
        before = makers.get(inputs[0].untyped_storage().data_ptr())
        if _is_free(part):
            writes[part] = None if before is None or _is_free(before) else before
        elif before is not None and _is_free(before):
            reads.setdefault(before, []).append(part)
        if isinstance(output, torch.Tensor):
            held.append(output)
            makers[output.untyped_storage().data_ptr()] = part

    norms = [part for part in module.modules() if _is_free(part)]
    with ExitStack() as stack:
        for part in (*layers, *norms):
            stack.callback(part.register_forward_hook(note).remove)
        module(images)
    return writes, reads


def _is_free(part: nn.Module) -> bool:
    """Return whether a module is a norm without running statistics."""
    return isinstance(part, NORMS) and getattr(part, "running_var", None) is None
