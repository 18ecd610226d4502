"""Quantised weights of modules: packed objects, tensor subclasses, and buffers that are codes and scales."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sane_plugins.errors import SourceError
from sane_plugins.quantization import (
    QuantizedTensor,
    can_unwrap,
    dequantized_from,
    find_quantized,
    is_wrapper,
    unread_reason,
    unwrap,
)
from sane_plugins.weights.tensor_identity import memory_key

if TYPE_CHECKING:
    from sane_plugins.weights.module_tensors.reading import ModuleTensor

_TORCH_AO = "torch.ao."  # modules whose packed weights have a method that unpacks them


def saved_tensors(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a module's state dict; tuples and packed objects as the tensors in them."""
    names = dict(module.named_modules(remove_duplicate=False))
    packed = {f"{name}." if name else "": part for name, part in names.items() if _unpacks(part)}
    for prefix, part in packed.items():
        told: Mapping[str, Mapping[str, torch.Tensor]] = part._weight_bias()
        for tensors in told.values():
            yield from ((f"{prefix}{name}", tensor) for name, tensor in tensors.items())
    for key, value in module.state_dict().items():
        if isinstance(value, tuple | list) and any(map(torch.is_tensor, value)):
            yield from ((f"{key}.{i}", x) for i, x in enumerate(value) if torch.is_tensor(x))
        elif torch.is_tensor(value) or not key.startswith(tuple(packed)):
            yield key, value


def decode_entries(
    entries: list[ModuleTensor], reasons: dict[str, str]
) -> tuple[list[ModuleTensor], dict[str, int]]:
    """Return the entries with quantised weights decoded, and the number of weights that cannot be.

    What is no weight of its own (scales, codes) gets a reason.
    """
    readable, missed, quantized = [], {}, set()
    for entry in entries:
        if is_wrapper(entry.value) and not can_unwrap(entry.value):
            reasons[entry.key] = f"values of {type(entry.value).__name__} are not read"
            missed[entry.key] = entry.value.numel()
        elif is_wrapper(entry.value) or entry.value.is_quantized:
            value, how = _plain(entry.value), dequantized_from(entry.value)
            readable.append(replace(entry, value=value, writable=False, converted=how))
            quantized.add(entry.key)
        else:
            readable.append(entry)
    tensors = {entry.key: entry.value for entry in readable}
    described = {key: (tuple(x.shape), x.dtype) for key, x in tensors.items() if not x.is_meta}
    found = find_quantized(described, tensors, quantized)
    gone = {part for weight in found.read.values() for part in weight.parts}
    modules = {entry.owner: entry.module for entry in readable}
    decoded = []
    for entry in readable:
        if weight := found.read.get(entry.key):
            owner, _, attribute = weight.key.rpartition(".")
            identity, value = (*entry.identity, attribute), _decoded(weight, tensors)
            part = modules.get(owner, entry.module)
            decoded.append(
                replace(
                    entry,
                    owner=owner,
                    attribute=attribute,
                    module=part,
                    value=value,
                    identity=identity,
                    writable=False,
                    converted=weight.how or entry.converted,
                )
            )
        elif entry.key not in gone:
            decoded.append(entry)
    reasons |= {**found.parts, **found.settings}
    for key, unread in found.unread.items():
        reasons[key], missed[key] = unread.reason, unread.count
    for entry in decoded:
        if not entry.value.is_floating_point() and entry.key not in reasons:
            shape, dtype = entry.value.shape, entry.value.dtype
            reasons[entry.key], count = unread_reason(entry.attribute, shape, dtype)
            missed |= {entry.key: count} if count else {}
    return decoded, missed


def unregistered_tensors(
    module: nn.Module, known: Iterable[torch.Tensor], names: Collection[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield floating-point tensors in plain attributes, which are in no state dict, by their names.

    What is computed from parameters (it has a gradient's history, or is one of the `known` tensors), what has
    one of the `names`, and what a parameter of a similar name makes (`weight` of `weight_v`), is none; nor is
    a lone number.
    """
    seen = {memory_key(tensor) for tensor in known}
    for name, part in module.named_modules():
        prefix = f"{name}." if name else ""
        registered = [*part._parameters.keys(), *part._buffers.keys()]
        for attribute, held in vars(part).items():
            if attribute.startswith("_") or any(x.startswith(f"{attribute}_") for x in registered):
                continue
            for key, tensor in _held_tensors(f"{prefix}{attribute}", held):
                is_leaf = tensor.is_leaf and tensor.is_floating_point() and tensor.numel() > 1
                if is_leaf and memory_key(tensor) not in seen and key not in names:
                    seen.add(memory_key(tensor))
                    yield key, tensor


def _decoded(weight: QuantizedTensor, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    try:
        return weight.decode(tensors)
    except ValueError as error:
        found = f"its parts do not fit each other ({error})"
        raise SourceError(
            f"'{weight.key}'", found, "whole quantised weights are needed", "load them again"
        ) from error


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return unwrap(tensor) if is_wrapper(tensor) else tensor.detach().dequantize()


def _held_tensors(attribute: str, held: object) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield an attribute's tensor, or those of a list, tuple or mapping."""
    if isinstance(held, torch.Tensor):
        yield attribute, held
    elif isinstance(held, Mapping | list | tuple):
        pairs = held.items() if isinstance(held, Mapping) else enumerate(held)
        yield from ((f"{attribute}.{k}", x) for k, x in pairs if isinstance(x, torch.Tensor))


def _unpacks(part: nn.Module) -> bool:
    """Return whether a module is one of torch.ao's recurrent ones, whose weights are in packed objects."""
    if not hasattr(part, "_weight_bias"):
        return False
    names = {kind.__module__ for kind in type(part).__mro__}
    is_ao = any(name.startswith(_TORCH_AO) for name in names)
    return is_ao and hasattr(part, "set_weight_bias") and not hasattr(part, "_packed_params")
