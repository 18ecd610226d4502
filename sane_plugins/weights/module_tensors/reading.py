"""Read a torch module's tensors in state-dict order.

Pruning masks, norms and parametrisations are folded: the value is what a forward pass in evaluation uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from sane_plugins.errors import SourceError
from sane_plugins.quantization import is_wrapper
from sane_plugins.weights.module_tensors.computed_tensors import ComputedTensors
from sane_plugins.weights.module_tensors.copies import evaluation_copy
from sane_plugins.weights.module_tensors.hooked_tensors import hooked_tensors
from sane_plugins.weights.module_tensors.nncf_masks import nncf_masked
from sane_plugins.weights.module_tensors.quantized_modules import (
    decode_entries,
    saved_tensors,
    unregistered_tensors,
)
from sane_plugins.weights.tensor_identity import memory_key


@dataclass(frozen=True)
class ModuleTensor:
    """One parameter or buffer: its owning module, its attribute there, and its effective value.

    Entries of equal `identity` are the same tensor under several names (tied). One that is not `writable` is
    quantised (`converted` says how), or made when the module is saved. One that is `masked` is multiplied by
    a mask beside it in each forward pass.
    """

    owner: str
    attribute: str
    module: nn.Module
    value: torch.Tensor
    identity: tuple[object, ...]
    writable: bool = True
    converted: str = ""
    masked: bool = False

    @property
    def key(self) -> str:
        """Return the tensor's name in a plain state dict."""
        return f"{self.owner}.{self.attribute}" if self.owner else self.attribute


def read_module_tensors(
    module: nn.Module,
) -> tuple[list[ModuleTensor], dict[str, str], dict[str, int]]:
    """Read parameters, buffers and what else is saved; say why entries are left out, and what is missed.

    The reasons may name entries too: those are no weights. Missed are weights that cannot be read, by their
    number. Raises `SourceError` where a lazy layer has no values yet.
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
    saved = list(saved_tensors(module))
    stored = _with_saved(module, list(_read_tree(module, reasons)), saved, reasons)
    entries, missed = decode_entries(stored, reasons)
    entries = _masked(entries, module, reasons)
    known = [value for _, value in saved if torch.is_tensor(value)]
    known += [*module.parameters(), *module.buffers()]
    for key, tensor in unregistered_tensors(module, known, {entry.key for entry in stored}):
        reasons[key] = "a tensor in a plain attribute: no parameter or buffer, so it is not saved"
        missed[key] = tensor.numel()
    return entries, reasons, missed


def _masked(
    entries: list[ModuleTensor], module: nn.Module, reasons: dict[str, str]
) -> list[ModuleTensor]:
    """Apply the masks that NNCF keeps beside the tensors; they are no weights themselves."""
    values = dict(module.named_buffers()) | {entry.key: entry.value for entry in entries}
    parts = list(nncf_masked({key: tuple(x.shape) for key, x in values.items()}))
    computed = ComputedTensors(parts, lambda key: values[key].detach())
    masks = {part.sources[1] for part in parts}
    reasons |= dict.fromkeys(
        sorted(masks), "part of a pruned tensor, folded into the tensor in use"
    )
    return [
        replace(entry, value=computed.value(entry.key), masked=True)
        if entry.key in computed.by_name
        else entry
        for entry in entries
        if entry.key not in masks
    ]


def _with_saved(
    module: nn.Module,
    entries: list[ModuleTensor],
    saved: list[tuple[str, Any]],
    reasons: dict[str, str],
) -> list[ModuleTensor]:
    """Return the entries and the tensors that are made on saving, in the order of the state dict."""
    covered = {entry.key for entry in entries} | reasons.keys()
    names = {entry.identity: entry.key for entry in entries}
    modules = dict(module.named_modules(remove_duplicate=False))
    wrapped = {entry.key for entry in entries if is_wrapper(entry.value)}
    made = []
    for key, value in saved:
        if key in covered:
            continue
        if part_of := wrapped.intersection(_enclosing(key)):
            reasons[key] = f"part of the quantised '{part_of.pop()}', folded into it"
        elif not torch.is_tensor(value):
            reasons[key] = f"{type(value).__name__}, no parameter or buffer"
        elif name := names.get(memory_key(value)):
            reasons[key] = f"another name of '{name}'"
        else:
            owner, _, attribute = key.rpartition(".")
            part = next(modules[x] for x in _enclosing(owner) if x in modules)
            identity = (id(part), key.removeprefix(owner))
            made.append(ModuleTensor(owner, attribute, part, value.detach(), identity, False))
    if not made:
        return entries
    places, place = {key: i for i, (key, _) in enumerate(saved)}, -1
    ordered = [(places[entry.key], entry) for entry in made]
    for entry in entries:  # one that is folded has no place of its own
        place = places.get(entry.key, place)
        ordered.append((place, entry))
    return [entry for _, entry in sorted(ordered, key=lambda pair: pair[0])]


def _enclosing(name: str) -> Iterator[str]:
    """Yield a module's name and those of the modules around it."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""


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
