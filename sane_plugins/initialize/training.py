"""Train and score a network on a task, reproducible to the bit on one device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from math import ceil

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sane_plugins.grafting import conditioned
from sane_plugins.initialize.options import TrainOptions
from sane_plugins.initialize.problem import InitializationProblem
from sane_plugins.initialize.pruned import PrunedNetwork
from sane_plugins.runtime import drawing_from
from sane_plugins.tasks import Task, accuracy, correct, logits
from sane_plugins.weights import copy_module

# Batches that batch norm's statistics are measured on before each score of a network in training: fewer than
# for the weights that are written (`InitializeOptions.norm_batches`), because it is done at every rung.
SCORING_NORM_BATCHES, SCORING_NORM_BATCH_SIZE = 8, 32


def train_epochs(
    module: nn.Module,
    task: Task,
    epochs: int,
    options: TrainOptions,
    rng: torch.Generator,
    pruned: PrunedNetwork | None = None,
) -> list[float]:
    """Train in place; return the accuracy on the task's test images after each epoch.

    The survivors of a pruned network stay as they are. Parameters are left in the channels-last memory
    format, in which CPUs convolve twice as fast.
    """
    set_memory_format(module, torch.channels_last)
    optimizer = _optimizer(module, options, pruned)
    scores = []
    for _ in range(epochs):
        module.train()
        dropout = _Dropout(rng)
        for batch in torch.randperm(len(task.y_train), generator=rng).split(options.batch):
            _step(module, optimizer, task.x_train[batch], task.y_train[batch], dropout)
        scores.append(accuracy(module, task.x_test, task.y_test))
    return scores


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
        self.module, self.task = set_memory_format(module, torch.channels_last), task
        self.steps, self.steps_per_epoch = 0, ceil(len(task.y_train) / options.batch)
        self._optimizer, self._rng = _optimizer(module, options, pruned), rng
        self._batches = _shuffled_batches(len(task.y_train), options.batch, rng)

    def advance(self, steps: int, check: Callable[[], None] = lambda: None) -> None:
        """Train until `steps` steps are done in all; `check` is called before each, and may raise."""
        self.module.train()
        dropout = _Dropout(self._rng)
        while self.steps < steps:
            check()
            batch = next(self._batches)
            x, y = self.task.x_train[batch], self.task.y_train[batch]
            _step(self.module, self._optimizer, x, y, dropout)
            self.steps += 1

    def correct(self) -> torch.Tensor:
        """Return which test images the network classifies correctly, (N,) bool.

        Running statistics of norms lag dozens of steps behind the weights, so they are measured for the
        current weights first.
        """
        with conditioned(
            self.module, self.task.x_train, SCORING_NORM_BATCHES, SCORING_NORM_BATCH_SIZE
        ):
            return correct(self.module, self.task.x_test, self.task.y_test)

    def score(self) -> float:
        """Return the accuracy on the test images."""
        return int(self.correct().sum()) / len(self.task.y_test)


def accuracy_anew(module: nn.Module, task: Task) -> float:
    """Return the accuracy with the statistics of norms measured anew."""
    with conditioned(module, task.x_train, SCORING_NORM_BATCHES, SCORING_NORM_BATCH_SIZE):
        return accuracy(module, task.x_test, task.y_test)


def start_training(problem: InitializationProblem, module: nn.Module, seed: int) -> TrainingRun:
    """Start the training of a copy of a module, whose seed orders the images."""
    rng = torch.Generator().manual_seed(seed)
    options = problem.options.train
    return TrainingRun(copy_module(module), problem.task, options, rng, problem.pruned)


def set_memory_format(module: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """Lay out the module's four-dimensional parameters in memory; values and shapes stay."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
    return module


def _optimizer(
    module: nn.Module, options: TrainOptions, pruned: PrunedNetwork | None
) -> torch.optim.Optimizer:
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer
    if options.optimizer == "adam":
        optimizer = torch.optim.Adam(parameters, options.lr, weight_decay=options.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            parameters, options.lr, options.momentum, weight_decay=options.weight_decay
        )
    if pruned is not None:
        pruned.freeze_survivors(module, optimizer)
    return optimizer


class _Dropout:
    """Gives dropout a stream of its own; to watch for draws costs a small network a tenth of its time.

    A network that draws nothing in its first step is taken for one without dropout.
    """

    def __init__(self, rng: torch.Generator) -> None:
        seed = int(torch.randint(2**62, (), generator=rng))
        self._draws = drawing_from(torch.Generator().manual_seed(seed))
        self._is_watched = True

    def loss(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy of labels (N,) for images (N, C, H, W)."""
        with self._draws if self._is_watched else nullcontext():
            loss = cross_entropy(logits(module, x), y)
        self._is_watched = self._draws.has_drawn
        return loss


def _step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    dropout: _Dropout,
) -> None:
    if len(y) == 1:
        return  # batch-norm over 1 x 1 maps cannot train on a single image
    optimizer.zero_grad(set_to_none=True)
    dropout.loss(module, x, y).backward()
    optimizer.step()


def _shuffled_batches(images: int, batch: int, rng: torch.Generator) -> Iterator[torch.Tensor]:
    while True:
        yield from torch.randperm(images, generator=rng).split(batch)
