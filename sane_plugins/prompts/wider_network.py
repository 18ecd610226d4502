"""Run the file of a dense network with the code of the module that was pruned from it.

Libraries that remove channels leave names and code as they are, so the module with wider layers is the dense
network. No code of the file is needed, and none is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from sane_plugins.errors import first_line
from sane_plugins.grafting import PromptNetwork
from sane_plugins.weights import WeightGraph, computes_tensors, copy_module

State = Mapping[str, torch.Tensor]


def run_as_wider(network: PromptNetwork, target: nn.Module, images: torch.Tensor) -> PromptNetwork:
    """Return a file's network that runs with the code of a narrower target.

    It stays as it is where its names or numbers of axes are others than the target's, or where nothing of it
    is wider. The target's code goes before that of an architecture that the file was recognised as. Where the
    wider module does not take images (N, C, H, W), a note says why.
    """
    state = _wider_state(network.graph, target)
    if state is None:
        return network
    try:
        module = _widened(target, state)
        with torch.no_grad():
            module(images[:2])
    except Exception as error:  # any layer may refuse a shape, each in its own words
        if network.build is not None:
            return network
        note = (
            f"{network.info.name} has the target's names and wider layers, and the target's code does not"
            f" run with these ({first_line(error)})"
        )
        return replace(network, notes=(*network.notes, note))
    note = (
        f"{network.info.name} is run with the target's own code, its layers as wide as the file's"
    )
    return replace(network, build=lambda: copy_module(module), notes=(*network.notes, note))


def _wider_state(graph: WeightGraph, target: nn.Module) -> State | None:
    """Return a file's tensors by the target's names, where it is the target with wider layers."""
    own = target.state_dict()
    if graph.container == "module" or computes_tensors(target):
        return None
    names = {key: graph.ties.get(key, key) for key in own}
    stored = {key: name for key, name in names.items() if name in graph.tensors}
    floats = {key for key, value in own.items() if value.is_floating_point()}
    if floats - stored.keys() or {p.key for p in graph.params} - set(stored.values()):
        return None
    shapes = {param.key: param.shape for param in graph.params}
    pairs = [(tuple(own[key].shape), tuple(shapes[stored[key]])) for key in sorted(floats)]
    if any(len(a) != len(b) or any(x > y for x, y in zip(a, b, strict=True)) for a, b in pairs):
        return None
    if all(ours == theirs for ours, theirs in pairs):
        return None
    return {key: graph.tensors[stored[key]] for key in floats}


@torch.no_grad()
def _widened(target: nn.Module, state: State) -> nn.Module:
    """Return a copy of a module that holds a state of wider tensors, in evaluation mode."""
    module = copy_module(target)
    for name, part in module.named_modules():
        for table in (part._parameters, part._buffers):
            for key, own in table.items():
                value = state.get(f"{name}.{key}" if name else key)
                if own is None or value is None:
                    continue
                stored = value.detach().to(own.device, own.dtype).clone()
                is_learnt = isinstance(own, nn.Parameter)
                table[key] = nn.Parameter(stored, requires_grad=False) if is_learnt else stored
        _set_sizes(part)
    return module.eval().requires_grad_(False)


def _set_sizes(part: nn.Module) -> None:
    """Set the sizes that a layer keeps beside its weights to those of the weights."""
    weight = getattr(part, "weight", None)
    if isinstance(part, _ConvNd) and isinstance(weight, torch.Tensor):
        is_depthwise = part.groups == part.in_channels > 1
        first, second = weight.shape[:2]
        if is_depthwise and second == 1:
            part.groups = first
        written, read = (second, first) if isinstance(part, _ConvTransposeNd) else (first, second)
        part.out_channels = written * (part.groups if isinstance(part, _ConvTransposeNd) else 1)
        part.in_channels = read * (1 if isinstance(part, _ConvTransposeNd) else part.groups)
    elif isinstance(part, nn.Linear):
        part.out_features, part.in_features = part.weight.shape
    elif isinstance(part, _BatchNorm):
        known = part.weight if part.weight is not None else part.running_mean
        part.num_features = len(known) if known is not None else part.num_features
    elif isinstance(part, nn.LayerNorm) and part.weight is not None:
        part.normalized_shape = tuple(part.weight.shape)
    elif isinstance(part, nn.GroupNorm) and part.weight is not None:
        part.num_channels = len(part.weight)
    elif isinstance(part, nn.PReLU):
        part.num_parameters = len(part.weight)
    elif isinstance(part, nn.Embedding):
        part.num_embeddings, part.embedding_dim = part.weight.shape
