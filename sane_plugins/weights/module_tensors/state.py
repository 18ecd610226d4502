"""A network in the names of the module that it was read from, as `load_state_dict` takes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from sane_plugins.weights.graph import StoredState, WeightGraph
from sane_plugins.weights.loading import load_into
from sane_plugins.weights.module_tensors.copies import copy_module
from sane_plugins.weights.module_tensors.hooked_tensors import hooked_tensors
from sane_plugins.weights.module_tensors.reading import read_module_tensors
from sane_plugins.weights.module_tensors.writing import is_computed
from sane_plugins.weights.tensor_identity import memory_key


@dataclass(frozen=True, eq=False)
class ModuleState:
    """Makes state dicts for modules like this one, of whose tensors some are computed from others."""

    module: nn.Module

    def __call__(self, graph: WeightGraph) -> StoredState:
        """Return the state dict of a copy that computes with the graph's tensors."""
        return module_state(self.module, graph)

    def __reduce__(self) -> tuple[Any, ...]:
        # torch does not pickle parametrised modules; in another process the network has plain names.
        return type(None), ()


def module_state(module: nn.Module, graph: WeightGraph) -> StoredState:
    """Return the state dict that gives a module like this one the graph's weights, strictly by its names.

    Raises `SourceError` where the module cannot hold them; see `load_into`.
    """
    copied = copy_module(module)
    load_into(copied, replace(graph, stored_form=None))
    state = {key: x for key, x in copied.state_dict().items() if isinstance(x, torch.Tensor)}
    first_keys: dict[tuple[object, ...], str] = {}
    owners = {key: first_keys.setdefault(memory_key(x), key) for key, x in state.items()}
    ties = {key: owner for key, owner in owners.items() if key != owner}
    return StoredState(state, ties, _main_names(module))


def names_in_use(module: nn.Module) -> dict[str, str]:
    """Return, by the name of each stored tensor that another is computed from, the name of that one."""
    names: dict[str, str] = {}
    for entry in filter(is_computed, read_module_tensors(module)[0]):
        prefix = entry.key.removesuffix(entry.attribute)
        if parametrize.is_parametrized(entry.module, entry.attribute):
            steps: nn.Module = entry.module.parametrizations[entry.attribute]  # type: ignore[index, assignment]
            stored = [f"parametrizations.{entry.attribute}.{key}" for key in steps.state_dict()]
        else:
            stored = hooked_tensors(entry.module).stored_names(entry.attribute)
        names |= {prefix + key: entry.key for key in stored}
    return names


def _main_names(module: nn.Module) -> dict[str, str]:
    """Return, for each computed tensor, the stored one that has its shape."""
    names = {}
    for entry in filter(is_computed, read_module_tensors(module)[0]):
        prefix = entry.key.removesuffix(entry.attribute)
        if not parametrize.is_parametrized(entry.module, entry.attribute):
            names[entry.key] = prefix + hooked_tensors(entry.module).main_source(entry.attribute)
            continue
        steps: nn.Module = entry.module.parametrizations[entry.attribute]  # type: ignore[index, assignment]
        for original, value in (*steps._parameters.items(), *steps._buffers.items()):
            if value is not None and value.shape == entry.value.shape:
                names[entry.key] = f"{prefix}parametrizations.{entry.attribute}.{original}"
    return names
