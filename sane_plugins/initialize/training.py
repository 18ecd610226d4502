"""Training and measuring a network on a task, repeatable to the bit on one device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sane_plugins.arguments import require_field_types
from sane_plugins.generation import conditioned
from sane_plugins.initialize.pruned import PrunedNetwork
from sane_plugins.runtime import seeded
from sane_plugins.tasks import Task, accuracy, correct, logits

_NORM_BATCHES, _NORM_BATCH = 8, 32


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How a network is trained: cross-entropy, no schedule, no augmentation."""

    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch: int = 64

    def __post_init__(self) -> None:
        require_field_types(self)


def train_epochs(
    module: nn.Module,
    task: Task,
    epochs: int,
    options: TrainOptions,
    rng: torch.Generator,
    pruned: PrunedNetwork | None = None,
) -> Iterator[float]:
    """Train in place; yield the accuracy on the task's test images after each epoch.

    The survivors of a pruned network stay as they are. Parameters are left in the channels-last memory
    format, in which CPUs convolve twice as fast.
    """
    arrange(module, torch.channels_last)
    optimizer = _optimizer(module, options)
    if pruned is not None:
        pruned.hold(module, optimizer)
    for _ in range(epochs):
        module.train()
        with seeded(rng):  # dropout draws from torch's own generator
            for batch in torch.randperm(len(task.y_train), generator=rng).split(options.batch):
                _step(module, optimizer, task.x_train[batch], task.y_train[batch])
        yield accuracy(module, task.x_test, task.y_test)


class TrainingRun:
    """Training that stops after any number of steps and goes on later; `module` is trained in place."""

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        options: TrainOptions,
        rng: torch.Generator,
        pruned: PrunedNetwork | None = None,
    ) -> None:
        self.module, self.task, self.steps = arrange(module, torch.channels_last), task, 0
        self._optimizer, self._rng = _optimizer(module, options), rng
        if pruned is not None:
            pruned.hold(module, self._optimizer)
        self._batches = _endless(len(task.y_train), options.batch, rng)

    def advance(self, steps: int, check: Callable[[], None]) -> None:
        """Train until so many steps are done; `check` is called before each, and may raise."""
        self.module.train()
        with seeded(self._rng):
            while self.steps < steps:
                check()
                batch = next(self._batches)
                x, y = self.task.x_train[batch], self.task.y_train[batch]
                _step(self.module, self._optimizer, x, y)
                self.steps += 1

    def correct(self) -> torch.Tensor:
        """Return which test images the network labels rightly, (N,) bool.

        Running statistics of norms, which follow the weights with a delay of dozens of steps, are those of
        the weights as they are.
        """
        with conditioned(self.module, self.task.x_train, _NORM_BATCHES, _NORM_BATCH):
            return correct(self.module, self.task.x_test, self.task.y_test)

    def score(self) -> float:
        """Return the share of test images that the network labels rightly."""
        return int(self.correct().sum()) / len(self.task.y_test)


def arrange(module: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """Lay out the module's four-dimensional parameters in memory; values and shapes stay."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
    return module


def _optimizer(module: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    parameters = [p for p in module.parameters() if p.requires_grad]
    if options.optimizer == "adam":
        return torch.optim.Adam(parameters, options.lr, weight_decay=options.weight_decay)
    return torch.optim.SGD(
        parameters, options.lr, options.momentum, weight_decay=options.weight_decay
    )


def _step(
    module: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor
) -> None:
    if len(y) == 1:
        return  # batch-norm over 1 x 1 maps cannot train on a single image
    optimizer.zero_grad(set_to_none=True)
    cross_entropy(logits(module, x), y).backward()
    optimizer.step()


def _endless(images: int, batch: int, rng: torch.Generator) -> Iterator[torch.Tensor]:
    while True:
        yield from torch.randperm(images, generator=rng).split(batch)
