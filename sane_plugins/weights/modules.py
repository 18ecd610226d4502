"""Read a network from a torch module.

Every floating-point parameter and buffer is owned by a layer. Pruning masks, norms of weights and
parametrisations are folded: what the forward pass uses is what is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import nn

from sane_plugins.weights.graph import WeightGraph
from sane_plugins.weights.layers import (
    NORM_ROLES,
    Kind,
    Layer,
    Param,
    Role,
    layer_name,
    vectors_last,
)
from sane_plugins.weights.module_channels import module_channel_op
from sane_plugins.weights.module_state import ModuleState
from sane_plugins.weights.module_tensors import ModuleTensor, read_module_tensors
from sane_plugins.weights.module_writes import computes_tensors
from sane_plugins.weights.trace import trace

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def from_module(module: nn.Module, source: str | None = None) -> WeightGraph:
    """Read a module's weights, and its topology where a symbolic trace gives one.

    Layers with weights come in the order of the state dict, so that a module and its saved file give
    the same tokens. A layer that the trace did not reach has no inputs, and a note says so. The
    module is not changed. Raises `SourceError` where it has no weights, or an uninitialised lazy layer.
    """
    entries, untouched = read_module_tensors(module)
    ties: dict[str, str] = {}
    params: dict[str, Param] = {}
    first_keys: dict[tuple[object, ...], str] = {}
    for entry in entries:
        if not entry.value.is_floating_point():
            untouched[entry.key] = f"{entry.value.dtype} values are no weights"
        elif (key := first_keys.setdefault(entry.identity, entry.key)) == entry.key:
            params[key] = _param(entry)
        else:
            ties[entry.key] = key
    traced = trace(module)
    owners = {p.key: p.module for p in entries if p.key in params or p.key in ties}
    layers, missed = _layers(traced or (), {k: params[ties.get(k, k)] for k in owners}, owners)
    return WeightGraph(
        source=source or type(module).__name__,
        layers=layers,
        tensors={entry.key: entry.value for entry in entries},
        untouched=untouched,
        ties=ties,
        notes=tuple(_notes(traced, missed)),
        container="module",
        stored_form=ModuleState(module) if computes_tensors(module) else None,
    )


def _param(entry: ModuleTensor) -> Param:
    shape = tuple(entry.value.shape)
    transposed = isinstance(entry.module, nn.modules.conv._ConvTransposeNd) and len(shape) > 1
    return Param(
        key=entry.key, role=_role(entry), shape=shape, dtype=entry.value.dtype, axis=int(transposed)
    )


def _role(entry: ModuleTensor) -> Role:
    if isinstance(entry.module, _NORMS):
        return NORM_ROLES.get(entry.attribute, "other")
    if entry.value.ndim > 1:
        return "weight" if type(entry.module).__module__.startswith("torch.nn") else "other"
    return "bias" if entry.attribute.startswith("bias") else "other"


def _layers(
    traced: Sequence[Layer], params: Mapping[str, Param], owners: Mapping[str, nn.Module]
) -> tuple[tuple[Layer, ...], list[str]]:
    """Assign params to the traced layers; return all layers, and the names of layers that the trace missed.

    Params are grouped by their owning module, as in a file. Where the trace sees a module's tensors
    one by one, all go to the first of them; modules inside a layer that the trace treats as a single
    step become separate layers.
    """
    names = {_module_name(layer.name) for layer in traced}
    grouped: dict[str, list[Param]] = {}
    kinds: dict[str, nn.Module] = {}
    missed: list[str] = []
    for owner, keys in _group_by_owner(params).items():
        name = next((n for n in (owner, *keys) if n in names), owner)
        grouped[name] = list({params[key].key: params[key] for key in keys}.values())
        kinds[name] = owners[keys[0]]
        if name not in names and not _is_covered(name, names):
            missed.append(name)
    layers = [
        replace(layer, params=vectors_last(grouped.get(_module_name(layer.name), ())))
        for layer in traced
    ]
    layers += [
        Layer(name=name, kind=_kind(kinds[name]), params=vectors_last(grouped[name]))
        for name in grouped
        if name not in names
    ]
    order = {name: i for i, name in enumerate(grouped)}
    # Sorting is stable: layers without weights stay in front.
    return tuple(sorted(layers, key=lambda layer: order.get(_module_name(layer.name), -1))), missed


def _group_by_owner(keys: Mapping[str, Param]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for key in keys:
        grouped.setdefault(layer_name(key), []).append(key)
    return grouped


def _is_covered(name: str, names: set[str]) -> bool:
    """Return whether the trace treated a module that contains this one as a single step."""
    while name and name not in names:
        name = name.rpartition(".")[0]
    return bool(name)


def _module_name(name: str) -> str:
    """Return the name of the module that a layer calls, without the number of the call."""
    return name.partition("#")[0]


def _kind(module: nn.Module) -> Kind:
    return "unknown" if type(module) is nn.Module else module_channel_op(module, 1).kind


def _notes(traced: tuple[Layer, ...] | None, missed: list[str]) -> Iterator[str]:
    if traced is None:
        yield "no topology: the module cannot be traced, so its channels are not permuted"
    elif missed:
        yield f"topology is partial: the trace does not reach {', '.join(missed[:5])}" + (
            f" and {len(missed) - 5} more" if len(missed) > 5 else ""
        )
