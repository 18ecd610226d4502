"""Pruned networks: a second task in the entries that pruning freed, the first task's left as they are.

After Renn et al., "The Multiple Subnetwork Hypothesis" (2022): survivors are shared and frozen, pruned
entries are generated and trained, and each task has its own classifier and norm statistics.
The method: docs/explanation/sane.md, section 14.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sane_plugins.errors import UsageError
from sane_plugins.weights import RUNNING, WeightGraph, copy_module

_SURVIVES_PREFIX, _OWN_PREFIX = "survives:", "own:"


@dataclass(frozen=True)
class PrunedNetwork:
    """A pruned network: its tensors, which of their entries survived, and which tensors each task owns.

    `survives` holds a mask for every tensor that pruning touched; tensors that it did not touch and that
    are not in `own` are shared as a whole.
    """

    tensors: Mapping[str, torch.Tensor]
    survives: Mapping[str, torch.Tensor]
    own: frozenset[str]

    @classmethod
    def of(cls, graph: WeightGraph, classifier: Collection[str]) -> PrunedNetwork:
        """Read which entries survived: those of matrices that are not zero.

        Raises `UsageError` where nothing was pruned outside the classifier.
        """
        own = frozenset({*classifier, *(p.key for p in graph.params if p.role in RUNNING)})
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
        return cls({param.key: x.clone() for param, x in graph.items()}, survives, own)

    @property
    def freed(self) -> int:
        """Return the number of entries that a second task may use."""
        return sum(int((~mask).sum()) for mask in self.survives.values())

    def with_survivors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return tensors whose surviving and shared entries are the first task's, bit for bit."""
        return {key: self._with_survivors(key, value) for key, value in tensors.items()}

    def _with_survivors(self, key: str, value: torch.Tensor) -> torch.Tensor:
        if key in self.own or key not in self.tensors:
            return value
        first_task_value = self.tensors[key].to(value.device)
        return (
            torch.where(self.survives[key].to(value.device), first_task_value, value)
            if key in self.survives
            else first_task_value
        )

    def freeze_survivors(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Restore survivors after every optimizer step, so that neither decay nor momentum moves them."""
        parameters = dict(module.named_parameters())
        frozen = {k: p for k, p in parameters.items() if k in self.tensors and k not in self.own}

        @torch.no_grad()
        def restore(*_: Any) -> None:
            for key, parameter in frozen.items():
                parameter.copy_(self._with_survivors(key, parameter))

        optimizer.register_step_post_hook(restore)

    def first_task_tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors that restore the first task's network from the second task's."""
        masks = {_SURVIVES_PREFIX + key: mask for key, mask in self.survives.items()}
        return masks | {
            _OWN_PREFIX + key: self.tensors[key] for key in self.own if key in self.tensors
        }


def first_task(
    second: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the first task's tensors from the second task's and `first_task_tensors`."""
    tensors = dict(second)
    for key, value in stored.items():
        name = key.partition(":")[2]
        if key.startswith(_SURVIVES_PREFIX):
            tensors[name] = torch.where(value, tensors[name], torch.zeros_like(tensors[name]))
        else:
            tensors[name] = value
    return tensors


def sparsity(tensors: Mapping[str, torch.Tensor]) -> float:
    """Return the share of values that are zero."""
    zeros = sum(int((x == 0).sum()) for x in tensors.values())
    return zeros / max(1, sum(x.numel() for x in tensors.values()))


def fresh_copies(module: nn.Module) -> Callable[[], nn.Module]:
    """Return a function that copies a module and resets its layers to their default initialisation."""

    def build() -> nn.Module:
        fresh = copy_module(module)
        for submodule in fresh.modules():
            if callable(reset := getattr(submodule, "reset_parameters", None)):
                reset()
        return fresh

    return build
