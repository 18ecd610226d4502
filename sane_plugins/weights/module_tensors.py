"""The tensors of a torch module where they lie: found in the order of the state dict, and written.

Pruning and parametrisations are folded: a place's value is what a forward pass in evaluation uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod

from sane_plugins.errors import SourceError
from sane_plugins.weights.layer_rules import memory


@dataclass(frozen=True)
class ModuleTensor:
    """One tensor of a module: whose it is, under which attribute, and its value in use.

    Places of equal `identity` are one tensor under several names.
    """

    owner: str
    attribute: str
    module: nn.Module
    value: torch.Tensor
    identity: tuple[object, ...]

    @property
    def key(self) -> str:
        """Return the name that a plain state dict would use."""
        return f"{self.owner}.{self.attribute}" if self.owner else self.attribute


def find(module: nn.Module) -> tuple[list[ModuleTensor], dict[str, str]]:
    """Return a module's places, and each entry of its state dict that is none with the reason.

    Raises `SourceError` where a lazy layer has no values yet.
    """
    reasons: dict[str, str] = {}
    for key, value in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(value):
            raise SourceError(
                f"{type(module).__name__}, '{key}'",
                "it has no values yet",
                "the weights of a lazy layer are made by its first call",
                "call the module once on an input",
            )
    places = list(_places(module, reasons))
    known = {place.key for place in places} | reasons.keys()
    for key, value in module.state_dict().items():
        if key not in known:
            made = "a tensor made on saving" if torch.is_tensor(value) else type(value).__name__
            reasons[key] = f"{made}, no parameter or buffer"
    return places, reasons


def write(place: ModuleTensor, tensor: torch.Tensor) -> None:
    """Write a tensor so that a forward pass uses it, as far as pruning or a parametrisation lets it.

    Raises `SourceError` where a parametrisation cannot be inverted.
    """
    module, attribute = place.module, place.attribute
    if hook := _pruning(module).get(attribute):
        getattr(module, f"{attribute}_orig").copy_(tensor)
        with torch.enable_grad():
            hook(module, None)  # renews the masked attribute, which is stale until the next forward
    elif parametrize.is_parametrized(module, attribute):
        _assign(place, tensor)
    else:
        getattr(module, attribute).copy_(tensor)


def is_parametrized(place: ModuleTensor) -> bool:
    """Tell whether a place is written through a parametrisation's inverse, which may fail."""
    return parametrize.is_parametrized(place.module, place.attribute)


def _places(module: nn.Module, reasons: dict[str, str]) -> Iterator[ModuleTensor]:
    folded: set[int] = set()
    for name, part in module.named_modules(remove_duplicate=False):
        if id(part) in folded:
            for key in part.state_dict(prefix=name + "."):
                reasons[key] = "original of a parametrisation, folded into the tensor in use"
            folded.update(map(id, part.children()))
            continue
        if parametrize.is_parametrized(part):
            folded.add(id(part.parametrizations))
            for attribute in map(str, part.parametrizations):
                yield ModuleTensor(
                    name, attribute, part, _in_use(part, attribute), (id(part), attribute)
                )
        yield from _own(name, part, reasons)


def _own(name: str, part: nn.Module, reasons: dict[str, str]) -> Iterator[ModuleTensor]:
    """Yield the tensors of one module; a pruned one takes the place of its original."""
    dot = f"{name}." if name else ""
    pruned = _pruning(part)
    originals = {f"{attribute}_orig": attribute for attribute in pruned}
    masks = {f"{attribute}_mask" for attribute in pruned}
    buffers = {k: v for k, v in part._buffers.items() if k not in part._non_persistent_buffers_set}
    for attribute, value in (part._parameters | buffers).items():
        if value is None:
            continue
        if attribute in originals or attribute in masks:
            reasons[dot + attribute] = "part of a pruned tensor, folded into the tensor in use"
        if plain := originals.get(attribute):
            mask = getattr(part, f"{plain}_mask")
            yield ModuleTensor(
                name, plain, part, (value * mask).detach(), memory(value) + memory(mask)
            )
        elif attribute not in masks:
            yield ModuleTensor(name, attribute, part, value.detach(), memory(value))


def _pruning(part: nn.Module) -> dict[str, BasePruningMethod]:
    """Return what `torch.nn.utils.prune` masks on every forward pass, by attribute."""
    hooks = part._forward_pre_hooks.values()
    return {str(h._tensor_name): h for h in hooks if isinstance(h, BasePruningMethod)}


def _in_use(part: nn.Module, attribute: str) -> torch.Tensor:
    """Return the value that an evaluation uses; in training, spectral norm changes when it is read."""
    steps = list(part.parametrizations[attribute].modules())  # type: ignore[index, union-attr]
    modes = [step.training for step in steps]
    try:
        for step in steps:
            step.training = False
        with torch.no_grad():
            value: torch.Tensor = getattr(part, attribute)
        return value.detach()
    finally:
        for step, mode in zip(steps, modes, strict=True):
            step.training = mode


def _assign(place: ModuleTensor, tensor: torch.Tensor) -> None:
    try:
        setattr(place.module, place.attribute, tensor)
    except Exception as error:  # right_inverse is anyone's code, so anything may be raised there
        raise SourceError(
            place.key,
            "its parametrisation has no inverse",
            "a written value must survive it",
            "remove it with torch.nn.utils.parametrize.remove_parametrizations first",
        ) from error
