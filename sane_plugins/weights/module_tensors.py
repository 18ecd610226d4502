"""Read a torch module's tensors in state-dict order, and write them back.

Pruning masks and parametrisations are folded: the value is what a forward pass in evaluation uses.
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
from sane_plugins.weights.module_copies import evaluation_copy
from sane_plugins.weights.tensor_identity import memory_key


@dataclass(frozen=True)
class ModuleTensor:
    """One parameter or buffer: its owning module, its attribute there, and its effective value.

    Entries of equal `identity` are the same tensor under several names (tied).
    """

    owner: str
    attribute: str
    module: nn.Module
    value: torch.Tensor
    identity: tuple[object, ...]

    @property
    def key(self) -> str:
        """Return the tensor's name in a plain state dict."""
        return f"{self.owner}.{self.attribute}" if self.owner else self.attribute


def read_module_tensors(module: nn.Module) -> tuple[list[ModuleTensor], dict[str, str]]:
    """Read parameters and buffers; map every other entry of the state dict to the reason it is left out.

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
    entries = list(_read_tree(module, reasons))
    covered = {entry.key for entry in entries} | reasons.keys()
    for key, value in module.state_dict().items():
        if key not in covered:
            kind = "a tensor made on saving" if torch.is_tensor(value) else type(value).__name__
            reasons[key] = f"{kind}, no parameter or buffer"
    return entries, reasons


def write_module_tensor(entry: ModuleTensor, tensor: torch.Tensor) -> None:
    """Write a tensor so that a forward pass uses it, as far as pruning or a parametrisation allows.

    Raises `SourceError` where a parametrisation cannot be inverted.
    """
    module, attribute = entry.module, entry.attribute
    if hook := _pruning_hooks(module).get(attribute):
        getattr(module, f"{attribute}_orig").copy_(tensor)
        with torch.enable_grad():
            hook(module, None)  # renews the masked attribute, which is stale until the next forward
    elif parametrize.is_parametrized(module, attribute):
        _write_parametrized(entry, tensor)
    else:
        getattr(module, attribute).copy_(tensor)


def is_parametrized(entry: ModuleTensor) -> bool:
    """Return whether a tensor is written through a parametrisation's inverse, which may fail."""
    return parametrize.is_parametrized(entry.module, entry.attribute)


def _read_tree(module: nn.Module, reasons: dict[str, str]) -> Iterator[ModuleTensor]:
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
                    name, attribute, part, _evaluation_value(part, attribute), (id(part), attribute)
                )
        yield from _read_direct(name, part, reasons)


def _read_direct(name: str, part: nn.Module, reasons: dict[str, str]) -> Iterator[ModuleTensor]:
    """Yield the tensors of one module without its children; a pruned tensor replaces its original."""
    prefix = f"{name}." if name else ""
    pruned = _pruning_hooks(part)
    originals = {f"{attribute}_orig": attribute for attribute in pruned}
    masks = {f"{attribute}_mask" for attribute in pruned}
    buffers = {k: v for k, v in part._buffers.items() if k not in part._non_persistent_buffers_set}
    for attribute, value in {**part._parameters, **buffers}.items():  # `|` is not TorchScript's
        if value is None:
            continue
        if attribute in originals or attribute in masks:
            reasons[prefix + attribute] = "part of a pruned tensor, folded into the tensor in use"
        if plain := originals.get(attribute):
            mask = getattr(part, f"{plain}_mask")
            yield ModuleTensor(
                name, plain, part, (value * mask).detach(), memory_key(value) + memory_key(mask)
            )
        elif attribute not in masks:
            yield ModuleTensor(name, attribute, part, value.detach(), memory_key(value))


def _pruning_hooks(part: nn.Module) -> dict[str, BasePruningMethod]:
    """Return the hooks of `torch.nn.utils.prune`, which mask on every forward pass, by attribute."""
    hooks = part._forward_pre_hooks.values()
    return {str(h._tensor_name): h for h in hooks if isinstance(h, BasePruningMethod)}


def _evaluation_value(part: nn.Module, attribute: str) -> torch.Tensor:
    """Return a tensor's value in evaluation mode; in training, reading it updates spectral norm."""
    steps: nn.Module = part.parametrizations[attribute]  # type: ignore[index, assignment]
    with torch.no_grad():
        value: torch.Tensor = evaluation_copy(steps)()
    return value.detach()


def _write_parametrized(entry: ModuleTensor, tensor: torch.Tensor) -> None:
    try:
        setattr(entry.module, entry.attribute, tensor)
    except Exception as error:  # right_inverse is anyone's code, so anything may be raised there
        raise SourceError(
            entry.key,
            "its parametrisation has no inverse",
            "a written value must survive it",
            "remove it with torch.nn.utils.parametrize.remove_parametrizations first",
        ) from error
