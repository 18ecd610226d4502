"""Read a torch module's tensors in state-dict order.

Pruning masks, norms and parametrisations are folded: the value is what a forward pass in evaluation uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from sane_plugins.errors import SourceError
from sane_plugins.weights.hooked_tensors import hooked_tensors
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
                    name, attribute, part, evaluation_value(part, attribute), (id(part), attribute)
                )
        yield from _read_direct(name, part, reasons)


def _read_direct(name: str, part: nn.Module, reasons: dict[str, str]) -> Iterator[ModuleTensor]:
    """Yield the tensors of one module without its children; a computed one replaces its sources."""
    prefix = f"{name}." if name else ""
    computed = hooked_tensors(part)
    buffers = {k: v for k, v in part._buffers.items() if k not in part._non_persistent_buffers_set}
    seen = set()
    for attribute, value in {**part._parameters, **buffers}.items():  # `|` is not TorchScript's
        if value is None:
            continue
        result = computed.result(attribute)
        if result == attribute:
            yield ModuleTensor(name, attribute, part, value.detach(), memory_key(value))
            continue
        adjective = computed.by_name[result].adjective
        reasons[prefix + attribute] = f"part of a {adjective} tensor, folded into the tensor in use"
        if result not in seen:
            seen.add(result)
            sources = (getattr(part, x) for x in computed.stored_names(result))
            identity = tuple(key for source in sources for key in memory_key(source))
            with torch.no_grad():
                folded = computed.value(result).detach()
            yield ModuleTensor(name, result, part, folded, (adjective, *identity))


def evaluation_value(part: nn.Module, attribute: str) -> torch.Tensor:
    """Return a tensor's value in evaluation mode; in training, reading it updates spectral norm."""
    steps: nn.Module = part.parametrizations[attribute]  # type: ignore[index, assignment]
    with torch.no_grad():
        value: torch.Tensor = evaluation_copy(steps)()
    return value.detach()
