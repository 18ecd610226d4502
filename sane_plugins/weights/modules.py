"""Networks from torch modules, and back into them.

Every floating-point parameter and buffer is owned by a layer. Pruning masks and parametrisations are
folded: what the forward pass uses is what is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod

from sane_plugins.errors import SourceError
from sane_plugins.weights.graph import Kind, Layer, Param, Role, WeightGraph
from sane_plugins.weights.layers import describe_module
from sane_plugins.weights.topology import trace

_NORMS = (
    nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm,
)  # fmt: skip
_NORM_ROLES: Mapping[str, Role] = {
    "weight": "scale", "bias": "shift", "running_mean": "running_mean", "running_var": "running_var",
}  # fmt: skip


@dataclass(frozen=True)
class _Found:
    """One tensor of a module: whose it is, under which attribute, and its value in use."""

    owner: str
    attribute: str
    module: nn.Module
    value: torch.Tensor
    identity: int

    @property
    def key(self) -> str:
        return f"{self.owner}.{self.attribute}" if self.owner else self.attribute


def from_module(module: nn.Module, source: str | None = None) -> WeightGraph:
    """Read a module's weights, and its topology where a symbolic trace gives one.

    Layers with weights come in the order of the state dict, so that a module and its saved file give
    the same tokens. A layer that the trace did not reach has no inputs, and a note says so.
    """
    untouched: dict[str, str] = {}
    ties: dict[str, str] = {}
    tensors: dict[str, torch.Tensor] = {}
    params: dict[str, Param] = {}
    first: dict[int, str] = {}
    owners: dict[str, nn.Module] = {}
    for found in _tensors(module, untouched):
        tensors[found.key] = found.value
        if not found.value.is_floating_point():
            untouched.setdefault(found.key, f"{found.value.dtype} values are no weights")
            continue
        owners[found.key] = found.module
        key = first.setdefault(found.identity, found.key)
        if key == found.key:
            params[key] = _param(found)
        else:
            ties[found.key] = key
    traced = trace(module)
    layers, missed = _layers(traced or (), params, ties, owners)
    return WeightGraph(
        source=source or type(module).__name__, layers=layers, tensors=tensors,
        untouched=untouched, ties=ties, notes=tuple(_notes(traced, missed)), container="module",
    )  # fmt: skip


def load_into(module: nn.Module, graph: WeightGraph) -> None:
    """Write a graph's tensors into a module of the same names; the inverse of `from_module`.

    Pruned entries stay zero. Raises `SourceError` for a tensor that is missing or has another shape, before
    anything is written, and where a parametrisation cannot be inverted.
    """
    places = list(_tensors(module, {}))
    given = {**dict(graph.tensors), **{k: graph.tensors[v] for k, v in graph.ties.items()}}
    for place in places:
        tensor = given.get(place.key)
        if tensor is None or tensor.shape != place.value.shape:
            raise SourceError(
                f"{graph.source}, '{place.key}'",
                "the tensor is missing" if tensor is None else f"its shape is {tuple(tensor.shape)}",
                f"the module needs one of shape {tuple(place.value.shape)}",
                "check that the weights belong to this module",
            )  # fmt: skip
    with torch.no_grad():
        for place in places:
            _write(place, given[place.key].to(place.value.device, place.value.dtype))


def _tensors(module: nn.Module, untouched: dict[str, str]) -> Iterator[_Found]:
    """Yield what a state dict would hold, folded, in its order; name what was folded in `untouched`."""
    folded: set[int] = set()
    for name, part in module.named_modules(remove_duplicate=False):
        if id(part) in folded:
            for key in part.state_dict(prefix=name + "."):
                untouched[key] = "original of a parametrisation, folded into the tensor in use"
            folded.update(map(id, part.children()))
            continue
        if parametrize.is_parametrized(part):
            folded.add(id(part.parametrizations))
            for attribute in part.parametrizations:
                value = getattr(part, str(attribute)).detach()
                yield _Found(name, str(attribute), part, value, id(part) ^ hash(attribute))
        yield from _own_tensors(name, part, untouched)


def _own_tensors(name: str, part: nn.Module, untouched: dict[str, str]) -> Iterator[_Found]:
    pruned = _pruned(part)
    for attribute in pruned:
        original = getattr(part, f"{attribute}_orig")
        mask = getattr(part, f"{attribute}_mask")
        value = (original * mask).detach()
        yield _Found(name, attribute, part, value, id(original))
    skipped = {f"{attribute}_{kind}" for attribute in pruned for kind in ("orig", "mask")}
    buffers = {k: v for k, v in part._buffers.items() if k not in part._non_persistent_buffers_set}
    for attribute, value in (part._parameters | buffers).items():
        if attribute in skipped:
            key = f"{name}.{attribute}" if name else attribute
            untouched[key] = "part of a pruned tensor, folded into the tensor in use"
        elif value is not None:
            yield _Found(name, attribute, part, value.detach(), id(value))


def _pruned(part: nn.Module) -> list[str]:
    """Return the attributes that `torch.nn.utils.prune` masks on every forward pass."""
    hooks = part._forward_pre_hooks.values()
    return [hook._tensor_name for hook in hooks if isinstance(hook, BasePruningMethod)]


def _param(found: _Found) -> Param:
    shape = tuple(found.value.shape)
    transposed = isinstance(found.module, nn.modules.conv._ConvTransposeNd) and len(shape) > 1
    return Param(
        key=found.key, role=_role(found), shape=shape, dtype=found.value.dtype, axis=int(transposed)
    )


def _role(found: _Found) -> Role:
    if isinstance(found.module, _NORMS):
        return _NORM_ROLES.get(found.attribute, "other")
    if found.value.ndim > 1:
        return "weight" if type(found.module).__module__.startswith("torch.nn") else "other"
    return "bias" if found.attribute.startswith("bias") else "other"


def _layers(
    traced: tuple[Layer, ...], params: Mapping[str, Param], ties: Mapping[str, str],
    owners: Mapping[str, nn.Module],
) -> tuple[tuple[Layer, ...], list[str]]:  # fmt: skip
    """Give each traced layer its params; return all layers, and the names of those not traced."""
    names = {_base(layer.name) for layer in traced}
    owned: dict[str, list[Param]] = {}
    kinds: dict[str, nn.Module] = {}
    for key, module in owners.items():
        name = _covering(key, names) or key.rpartition(".")[0] or key
        owned.setdefault(name, []).append(params[ties.get(key, key)])
        kinds[name] = module
    missed = [name for name in owned if name not in names]
    order = {name: i for i, name in enumerate(owned)}
    layers = [replace(layer, params=tuple(owned.get(_base(layer.name), ()))) for layer in traced]
    layers += [
        Layer(name=name, kind=_kind(kinds[name]), params=tuple(owned[name])) for name in missed
    ]
    # Sorting is stable: what connects the layers stays in front.
    return tuple(sorted(layers, key=lambda layer: order.get(_base(layer.name), -1))), missed


def _covering(key: str, names: set[str]) -> str | None:
    """Return the traced layer that owns a tensor: itself, or the module nearest above it."""
    while key and key not in names:
        key = key.rpartition(".")[0]
    return key or None


def _base(name: str) -> str:
    """Return the module that a layer calls, whichever call it is."""
    return name.partition("#")[0]


def _kind(module: nn.Module) -> Kind:
    return "unknown" if type(module) is nn.Module else describe_module(module, 1).kind


def _notes(traced: tuple[Layer, ...] | None, missed: list[str]) -> Iterator[str]:
    if traced is None:
        yield "no topology: the module cannot be traced, so its channels are not permuted"
    elif missed:
        yield f"topology is partial: the trace does not reach {', '.join(missed[:5])}" + (
            f" and {len(missed) - 5} more" if len(missed) > 5 else ""
        )


def _write(place: _Found, tensor: torch.Tensor) -> None:
    attribute, module = place.attribute, place.module
    if attribute in _pruned(module):
        getattr(module, f"{attribute}_orig").copy_(tensor)
    elif parametrize.is_parametrized(module, attribute):
        _assign(place, tensor)
    else:
        getattr(module, attribute).copy_(tensor)


def _assign(place: _Found, tensor: torch.Tensor) -> None:
    """Assign through the parametrisation's own inverse."""
    try:
        setattr(place.module, place.attribute, tensor)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise SourceError(
            place.key, "its parametrisation has no inverse", "a written value must survive it",
            "remove it with torch.nn.utils.parametrize.remove_parametrizations first",
        ) from error  # fmt: skip
