"""Candidates for an initialisation: how each is built, scored before training, and tried for one epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sane_plugins.tasks.batchnorm import condition
from sane_plugins.tasks.classifier import find_classifier, fit_classifier
from sane_plugins.tasks.sample import KDE, Sampler
from sane_plugins.tasks.task import Task
from sane_plugins.tasks.train import TrainOptions, accuracy, arrange, seeded, train_epochs
from sane_plugins.tasks.transfer import Transfer
from sane_plugins.weights.modules import from_module, load_into

Kind = Literal["default", "default, classifier fitted", "sane"]
_EPOCH_FLOP = 3e11  # about ten seconds on two cores
_SMALL_FLOP = 2e7
_LEAST_IMAGES, _MOST_IMAGES = 256, 10_000
_FIT_IMAGES = 2000


@dataclass(frozen=True, kw_only=True)
class InitialiseOptions:
    """How candidates are drawn and chosen.

    `candidates` are drawn and scored before training; the best `keep` of them are trained for an epoch, and
    so are `defaults` default initialisations (None: as many as `keep`), and as many with a fitted
    classifier, which are the best of as many draws as there are candidates. `classifier`: "fit" solves it in
    closed form on training images (the default initialisation is then tried both as it is and with a
    fitted classifier), "default" leaves it at its default initialisation, "prompt" keeps the prompts'
    where its shape allows. `validation` is the share of the training images that is held out to choose by,
    at most `validation_images`; `images` caps the training images (None: what an epoch can afford).
    `model` is a SANE file (None: the embedded one).
    Batch norm is conditioned on at most `norm_batches` batches of `norm_batch` images.
    """

    sampler: Sampler = field(default_factory=KDE)
    candidates: int = 16
    keep: int = 3
    defaults: int | None = None
    classifier: Literal["fit", "default", "prompt"] = "fit"
    validation: float = 0.2
    validation_images: int = 2000
    images: int | None = None
    norm_batches: int = 50
    norm_batch: int = 32
    train: TrainOptions = field(default_factory=TrainOptions)
    seed: int = 0
    model: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One initialisation and its accuracy on held-out images before and after one epoch, if trained."""

    name: str
    kind: Kind
    seed: int
    before: float
    after: float | None = None
    chosen: bool = False


@dataclass(frozen=True)
class Candidate:
    """Initial weights, in a module, and what was measured of them."""

    row: Row
    module: nn.Module


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every candidate is built and measured with; `classifier` holds the keys of its tensors."""

    make: Callable[[], nn.Module]
    task: Task
    classifier: frozenset[str]
    options: InitialiseOptions
    rng: torch.Generator

    def draw(self, transfer: Transfer, latents: torch.Tensor, name: str) -> Candidate:
        """Build the network that latents (T, L) stand for."""
        module = self._fresh()
        graph = from_module(module)
        weights = transfer.weights(latents, graph)
        if self.options.classifier != "prompt":
            weights = {k: v for k, v in weights.items() if k not in self.classifier}
        load_into(module, graph.replace(weights))
        self._condition(module)
        if self.options.classifier == "fit":
            self._fit(module)
        return self._scored(module, name, "sane")

    @property
    def fits(self) -> bool:
        """Tell whether candidates get a fitted classifier."""
        return self.options.classifier == "fit" and bool(self.classifier)

    def default(self, name: str) -> Candidate:
        """Build a default initialisation."""
        return self._scored(self._fresh(), name, "default")

    def fitted_default(self, name: str) -> Candidate:
        """Build a default initialisation with a fitted classifier, as SANE candidates have."""
        module = self._fresh()
        self._condition(module)
        self._fit(module)
        return self._scored(module, f"{name}, classifier fitted", "default, classifier fitted")

    def try_out(self, candidate: Candidate) -> Candidate:
        """Train a copy for one epoch with the candidate's own seed; the candidate keeps its weights."""
        rng = torch.Generator().manual_seed(candidate.row.seed)
        copy = deepcopy(candidate.module)
        after = next(train_epochs(copy, self.task, 1, self.options.train, rng))
        return Candidate(replace(candidate.row, after=after), candidate.module)

    def _fresh(self) -> nn.Module:
        with seeded(self.rng):
            return arrange(self.make(), torch.channels_last)

    def _condition(self, module: nn.Module) -> None:
        images, size = self.task.x_train, self.options.norm_batch
        batches = min(self.options.norm_batches, ceil(len(images) / size))
        condition(module, images, batches, size, self.rng)

    def _fit(self, module: nn.Module) -> None:
        images, labels = self.task.x_train[:_FIT_IMAGES], self.task.y_train[:_FIT_IMAGES]
        layer = find_classifier(module, images[:2])
        if layer is not None:
            fit_classifier(module, layer, images, labels)

    def _scored(self, module: nn.Module, name: str, kind: Kind) -> Candidate:
        seed = int(torch.randint(2**31, (), generator=self.rng))
        score = accuracy(module, self.task.x_test, self.task.y_test)
        return Candidate(Row(name=name, kind=kind, seed=seed, before=score), module)


def affordable(
    module: nn.Module, task: Task, options: InitialiseOptions, rng: torch.Generator
) -> Task:
    """Return training images to train on and to choose by, no more than one epoch can afford."""
    afford = int(_EPOCH_FLOP / (3 * flop(module, task)))
    most = min(max(afford, _LEAST_IMAGES), _MOST_IMAGES)
    held_out = min(options.validation_images, most)
    share = min(options.validation, held_out / len(task.y_train))
    return task.held_out(share, rng).subset(options.images or most, rng)


@contextmanager
def fitting_threads(module: nn.Module, task: Task) -> Iterator[None]:
    """Let a small network run on one thread: it is too small to share out.

    On a busy machine the threads of a small step wait for each other longer than they work.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if flop(module, task) < _SMALL_FLOP else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def flop(module: nn.Module, task: Task) -> int:
    """Return the floating-point operations of one image's forward pass, at least 1."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module.eval()(task.x_train[:1])
    return max(1, int(counter.get_total_flops()))
