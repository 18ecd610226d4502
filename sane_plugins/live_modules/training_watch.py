"""Predict the properties of a module while it trains, without a trace in its training.

Each time a copy is read: the module itself is never traced, run or put into another mode.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from sane_plugins.arguments import require_type
from sane_plugins.errors import SaneError, UsageError
from sane_plugins.host import Host
from sane_plugins.properties import is_withheld, withheld_note
from sane_plugins.weights import copy_module

if TYPE_CHECKING:
    from sane_plugins.properties import AnyEstimate, PredictOptions

Log = Callable[[Mapping[str, float], int], object]


@dataclass(frozen=True, kw_only=True)
class WatchedStep:
    """What was predicted at a step of training; with `force` guesses count as numbers too."""

    step: int
    estimates: Mapping[str, AnyEstimate]
    force: bool = False

    @property
    def numbers(self) -> dict[str, float]:
        """Return the numbers that may be told, for loggers, by names such as `sane/test_accuracy`."""
        told = {
            name: x.value for name, x in self.estimates.items() if not is_withheld(x, self.force)
        }
        return {f"sane/{name}": x for name, x in told.items() if isinstance(x, int | float)}

    @property
    def withheld(self) -> str:
        """Return a sentence on what is not told, as the network is of no kind that the heads know."""
        return withheld_note(self.estimates, self.force)


class PredictWhileTraining:
    """Predicts every so many calls: call it with the module after an epoch, or after a step.

    `steps` holds what was predicted; `log(numbers, step)` gets the numbers. Those of a network unlike all
    that a head was fitted on are guesses: they are left out, which is warned of once, unless `force` is set.
    A network that cannot be predicted from does not end a training: it is warned of once, and `problems` has
    the sentences.
    """

    def __init__(
        self,
        *,
        every: int = 1,
        log: Log | None = None,
        options: PredictOptions | None = None,
        host: Host | None = None,
        force: bool = False,
    ) -> None:
        require_type("PredictWhileTraining, every", every, int)
        require_type("PredictWhileTraining, force", force, bool)
        if every < 1:
            raise UsageError(
                "PredictWhileTraining, every",
                f"it is {every}",
                "at least 1 is needed",
                "leave it out",
            )
        self.steps: list[WatchedStep] = []
        self.problems: list[str] = []
        self._every, self._log, self._options, self._host = every, log, options, host
        self._force, self._told_withheld = force, False
        self._calls = 0

    def __call__(self, module: nn.Module, step: int | None = None) -> WatchedStep | None:
        """Predict from a module as it is now; None where it is not its turn, or could not be predicted from.

        `step` is the number that is noted, without it that of the call, from 1.
        """
        self._calls += 1
        if self._calls % self._every:
            return None
        try:
            with _random_numbers_kept():
                self._host = self._host or Host.installed()
                estimates = self._host.predict(_copy_on_cpu(module), self._options)
        except SaneError as error:
            if not self.problems:
                warnings.warn(f"not predicted while training: {error}", stacklevel=2)
            self.problems.append(str(error))
            return None
        step = self._calls if step is None else step
        watched = WatchedStep(step=step, estimates=estimates, force=self._force)
        self.steps.append(watched)
        if watched.withheld and not self._told_withheld:
            warnings.warn(f"while training {watched.withheld}", stacklevel=2)
            self._told_withheld = True
        if self._log is not None:
            self._log(watched.numbers, watched.step)
        return watched


def _copy_on_cpu(module: nn.Module) -> nn.Module:
    """Return a copy of the network inside wrappers that torch puts around a module, in evaluation mode."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):  # torch.compile
        module = inner
    while isinstance(module, wrappers):
        module = module.module
    return copy_module(module).cpu().eval()


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """Leave the random numbers of torch on the CPU, numpy and Python where they stand."""
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
