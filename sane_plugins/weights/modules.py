"""Read a network from a torch module.

Every floating-point parameter and buffer is owned by a layer. Pruning masks, norms of weights and
parametrisations are folded: what the forward pass uses is what is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import nn
from torch.nn.modules import batchnorm, conv

from sane_plugins.weights.graph import WeightGraph
from sane_plugins.weights.layer_forms import LayerForm, Shape, layer_form, plain_roles
from sane_plugins.weights.layers import (
    NORM_ROLES,
    Kind,
    Layer,
    Param,
    layer_name,
    vectors_last,
)
from sane_plugins.weights.module_tensors.reading import ModuleTensor, read_module_tensors
from sane_plugins.weights.module_tensors.state import ModuleState
from sane_plugins.weights.module_tensors.writing import computes_tensors
from sane_plugins.weights.network_errors import network_errors_told
from sane_plugins.weights.tracing.module_channels import module_channel_op
from sane_plugins.weights.tracing.trace import trace
from sane_plugins.weights.validity.operations import possible

_NORMS = (batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@network_errors_told()
def from_module(module: nn.Module, source: str | None = None) -> WeightGraph:
    """Read a module's weights, and its topology where a symbolic trace gives one.

    Layers with weights come in the order of the state dict, so that a module and its saved file give
    the same tokens. A layer that the trace did not reach has no inputs, and a note says so. The
    module is not changed. Raises `SourceError` where it has no weights, or an uninitialised lazy layer, or
    where its own code raises.
    """
    entries, untouched, missed = read_module_tensors(module)
    ties: dict[str, str] = {}
    params: dict[str, Param] = {}
    first_keys: dict[tuple[object, ...], str] = {}
    forms = _forms([entry for entry in entries if entry.key not in untouched])
    for entry in entries:
        if entry.key in untouched:
            continue
        if (key := first_keys.setdefault(entry.identity, entry.key)) == entry.key:
            params[key] = _param(entry, forms[layer_name(key)])
        else:
            ties[entry.key] = key
    traced = trace(module)
    owned = {
        entry.key: params[ties.get(entry.key, entry.key)]
        for entry in entries
        if entry.key in params or entry.key in ties
    }
    layers, unreached = _layers(traced or (), owned, forms)
    return WeightGraph(
        source=source or type(module).__name__,
        layers=layers,
        tensors={entry.key: entry.value for entry in entries},
        untouched=untouched,
        ties=ties,
        missed=missed,
        converted={x.key: x.converted for x in entries if x.converted and x.key in params},
        notes=tuple(_notes(traced, unreached)),
        container="module",
        stored_form=ModuleState(module) if computes_tensors(module) else None,
    )


def _forms(entries: Sequence[ModuleTensor]) -> dict[str, LayerForm]:
    """Return what each module with tensors is: by its class where it is torch's, else by its tensors."""
    shapes: dict[str, dict[str, Shape]] = {}
    modules: dict[str, nn.Module] = {}
    for entry in entries:
        if entry.value.is_floating_point():
            name = layer_name(entry.key)
            shapes.setdefault(name, {})[entry.attribute] = tuple(entry.value.shape)
            modules[name] = entry.module
    return {name: _form(module, shapes[name]) for name, module in modules.items()}


def _form(module: nn.Module, shapes: Mapping[str, Shape]) -> LayerForm:
    form, roles = layer_form(shapes), plain_roles(shapes)
    if isinstance(module, conv._ConvNd):
        is_transposed = isinstance(module, conv._ConvTransposeNd)
        kind: Kind = "transposed_conv" if is_transposed else "conv"
        return LayerForm(kind, roles, int(is_transposed), module.groups)
    if isinstance(module, _NORMS):
        return LayerForm("norm", {x: NORM_ROLES.get(x, "other") for x in shapes})
    known = "opaque" if type(module) is nn.Module else module_channel_op(module, 1).kind
    return form if known == "opaque" else LayerForm(known, roles)


def _param(entry: ModuleTensor, form: LayerForm) -> Param:
    shape = tuple(entry.value.shape)
    axis = form.axis if len(shape) > 1 and entry.attribute == "weight" else 0
    role = form.roles[entry.attribute]
    return Param(key=entry.key, role=role, shape=shape, dtype=entry.value.dtype, axis=axis)


def _layers(
    traced: Sequence[Layer], params: Mapping[str, Param], forms: Mapping[str, LayerForm]
) -> tuple[tuple[Layer, ...], list[str]]:
    """Assign params to the traced layers; return all layers, and the names of layers that the trace missed.

    Params are grouped by their owning module, as in a file. Where the trace sees a module's tensors
    one by one, all go to the first of them; so they do where a module with tensors is opaque, which
    then reads them. Modules inside a layer that the trace treats as a single step become separate layers.
    """
    names = {_module_name(layer.name) for layer in traced}
    opaque = {layer.name for layer in traced if layer.kind == "opaque"}
    grouped: dict[str, list[Param]] = {}
    owners: dict[str, str] = {}
    missed: list[str] = []
    for owner, keys in _group_by_owner(params).items():
        places = keys if owner in opaque else (owner, *keys)
        name = next((n for n in places if n in names), keys[0] if owner in opaque else owner)
        grouped[name] = list({params[key].key: params[key] for key in keys}.values())
        owners[name] = owner
        if name not in names and not _is_covered(name, names):
            missed.append(name)
    read = {owners[name]: name for name in grouped if owners[name] in opaque}
    layers = []
    for layer in traced:
        name = _module_name(layer.name)
        if name in grouped:
            layer = replace(layer, params=vectors_last(grouped[name]))
        if name in grouped and layer.kind == "parameter":
            form = forms[owners[name]]
            layer = replace(layer, kind=form.kind, groups=form.groups)
        if layer.name in read:
            layer = replace(layer, inputs=(*layer.inputs, read[layer.name]))
        layers.append(layer)
    layers += [
        Layer(
            name=name,
            kind=forms[owners[name]].kind,
            groups=forms[owners[name]].groups,
            params=vectors_last(grouped[name]),
        )
        for name in grouped
        if name not in names
    ]
    layers = [possible(layer) for layer in layers]
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


def _notes(traced: tuple[Layer, ...] | None, missed: list[str]) -> Iterator[str]:
    if traced is None:
        yield "no topology: the module cannot be traced, so its channels are not permuted"
    elif missed:
        yield f"topology is partial: the trace does not reach {', '.join(missed[:5])}" + (
            f" and {len(missed) - 5} more" if len(missed) > 5 else ""
        )
