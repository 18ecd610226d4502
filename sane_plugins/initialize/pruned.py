"""Pruned networks: a second task in the entries that pruning freed, the first task's left as they are.

After Renn et al., "The Multiple Subnetwork Hypothesis" (2022): survivors are shared and frozen, pruned
entries are generated and trained, and each task has its own classifier and norm statistics.
The method: docs/explanation/sane.md, section 14.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sane_plugins.errors import UsageError
from sane_plugins.weights import RUNNING, WeightGraph

_SURVIVES, _OWN = "survives:", "own:"


@dataclass(frozen=True)
class PrunedNetwork:
    """A pruned network: its tensors, which of their entries survived, and which each task has of its own.

    `survives` holds a mask for every tensor that pruning touched; tensors that it did not touch and that
    are not in `own` are shared as a whole.
    """

    tensors: Mapping[str, torch.Tensor]
    survives: Mapping[str, torch.Tensor]
    own: frozenset[str]

    @property
    def freed(self) -> int:
        """Return the number of entries that a second task may use."""
        return sum(int((~mask).sum()) for mask in self.survives.values())

    def merged(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return tensors whose surviving and shared entries are the first task's, bit for bit."""
        return {key: self._merged(key, value) for key, value in tensors.items()}

    def _merged(self, key: str, value: torch.Tensor) -> torch.Tensor:
        if key in self.own or key not in self.tensors:
            return value
        given = self.tensors[key].to(value.device)
        return (
            torch.where(self.survives[key].to(value.device), given, value)
            if key in self.survives
            else given
        )

    def hold(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put survivors back after every step: neither decay nor momentum moves them."""
        parameters = dict(module.named_parameters())
        held = {k: p for k, p in parameters.items() if k in self.tensors and k not in self.own}

        @torch.no_grad()
        def restore(*_: Any) -> None:
            for key, parameter in held.items():
                parameter.copy_(self._merged(key, parameter))

        optimizer.register_step_post_hook(restore)

    def aside(self) -> dict[str, torch.Tensor]:
        """Return what is needed, beside the second task's network, to have the first one again."""
        masks = {_SURVIVES + key: mask for key, mask in self.survives.items()}
        return masks | {_OWN + key: self.tensors[key] for key in self.own if key in self.tensors}


def pruned(graph: WeightGraph, classifier: Collection[str]) -> PrunedNetwork:
    """Read which entries survived: those of matrices that are not zero.

    Raises `UsageError` where nothing was pruned outside the classifier.
    """
    measured = {param.key for param in graph.params if param.role in RUNNING}
    own = frozenset({*classifier, *measured})
    masks = {
        param.key: graph.tensors[param.key] != 0
        for param in graph.params
        if param.key not in own and len(param.shape) > 1
    }
    survives = {key: mask for key, mask in masks.items() if not mask.all()}
    if not survives:
        raise UsageError(
            "--pruned",
            f"no weight of {graph.source} is zero",
            "a pruned network has zeros",
            "prune it first (torch.nn.utils.prune), or leave --pruned out",
        )
    return PrunedNetwork({key: tensor.clone() for key, tensor in _tensors(graph)}, survives, own)


def first_task(
    second: Mapping[str, torch.Tensor], aside: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the first task's tensors from the second task's and what was kept aside."""
    found = dict(second)
    for key, value in aside.items():
        name = key.partition(":")[2]
        if key.startswith(_SURVIVES):
            found[name] = torch.where(value, found[name], torch.zeros_like(found[name]))
        else:
            found[name] = value
    return found


def sparsity(tensors: Mapping[str, torch.Tensor]) -> float:
    """Return the share of values that are zero."""
    zeros = sum(int((x == 0).sum()) for x in tensors.values())
    return zeros / max(1, sum(x.numel() for x in tensors.values()))


def drawn_anew(module: nn.Module) -> Callable[[], nn.Module]:
    """Return what makes copies of a module whose layers are at their default initialisation."""

    def make() -> nn.Module:
        fresh = deepcopy(module)
        for part in fresh.modules():
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
        return fresh

    return make


def _tensors(graph: WeightGraph) -> list[tuple[str, torch.Tensor]]:
    return [(param.key, tensor) for param, tensor in graph.items()]
