"""Methods write prompts into fresh networks; the work that several of them begin with is done once.

The method: docs/explanation/sane.md, section 6.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sane_plugins.errors import SaneError
from sane_plugins.grafting import TransferMethod, Transplant, base_of
from sane_plugins.initialize.kinds import CandidateSpec, Kind
from sane_plugins.initialize.problem import InitializationProblem
from sane_plugins.progress import Report
from sane_plugins.runtime import random_stream
from sane_plugins.weights import tensors_digest

State = Mapping[str, torch.Tensor]


class NothingWrittenError(SaneError):
    """A method wrote nothing, or what another method has written: there is no further candidate."""


class Transplants:
    """What methods write for one problem.

    A method with a `base` goes on from what that writes (`VariantMethod`). Methods of equal bases draw the
    same numbers, so the base's result for the latest prompt is kept and serves all of them.
    """

    _transplant: Transplant

    def __init__(self, problem: InitializationProblem, report: Report) -> None:
        self._problem, self._report = problem, report
        self._latest: tuple[str, int] | None = None
        self._state: State = {}
        self._writers: dict[tuple[int, str], str] = {}  # by prompt, and digest of what was written

    def write(self, module: nn.Module, default: State, spec: CandidateSpec) -> Transplant:
        """Let a spec's method write into a module that holds the `default` tensors.

        Raises `NothingWrittenError` where another method has written the same, bit for bit.
        """
        method: Any = self._problem.methods[spec.method]
        base = base_of(method)
        if base is None:
            written = self._written(module, method, spec)
        else:
            written = self._begun(module, base, spec)
            written = method.vary(module, default, self._problem.task, written)
        digest = tensors_digest(sorted(module.state_dict().items()))
        if self._writers.setdefault((spec.number, digest), spec.method) != spec.method:
            raise NothingWrittenError(
                spec.method, "it wrote what another method has", "it must differ", ""
            )
        return written

    def _begun(self, module: nn.Module, base: TransferMethod, spec: CandidateSpec) -> Transplant:
        """Let a base write, or write again what it has."""
        begun = (self._problem.first_of_base(spec.method), spec.number)
        if self._latest != begun:
            self._transplant = self._written(module, base, spec)
            self._state = {key: value.clone() for key, value in module.state_dict().items()}
            self._latest = begun
        else:
            module.load_state_dict(self._state)
        return self._transplant

    def _written(
        self, module: nn.Module, method: TransferMethod, spec: CandidateSpec
    ) -> Transplant:
        problem, name = self._problem, self._problem.first_of_base(spec.method)
        # A method that needs no prompt takes None.
        is_transfer = spec.kind is Kind.TRANSFER
        prompt: Any = problem.prompt_networks[spec.number] if is_transfer else None
        rng = random_stream(problem.options.seed, "transfer", name, spec.number)
        return method(module, prompt, problem.task, rng, self._report)
