"""Candidates for an initialisation: how each is built, scored before training, and tried for one epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from math import ceil

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sane_plugins.autoencoder import SANE, fingerprint
from sane_plugins.generation import (
    ConditionedSampler,
    Sampler,
    SamplingContext,
    Transfer,
    condition,
    find_classifier,
    fit_classifier,
    plan_transfer,
    rescale,
)
from sane_plugins.initialize.options import (
    Candidate,
    CandidateScore,
    CandidateSpec,
    InitializeOptions,
)
from sane_plugins.initialize.pruned import PrunedNetwork
from sane_plugins.initialize.training import arrange
from sane_plugins.runtime import random_stream, seeded, threads
from sane_plugins.tasks import Task, accuracy, describe
from sane_plugins.weights import RUNNING, WeightGraph, from_module, load_into

DEFAULT, MEASURED, FITTED = "default", "measured on the task", "fitted to the task"
_EPOCH_FLOP = 3e11  # about ten seconds on two cores
_SMALL_FLOP = 2e7
_LEAST_IMAGES, _MOST_IMAGES = 256, 10_000
_FIT_IMAGES = 2000
_SCALE_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class CandidateBuilder:
    """What every candidate is built and measured with; `classifier` holds the keys of its tensors."""

    make: Callable[[], nn.Module]
    task: Task
    classifier: frozenset[str]
    options: InitializeOptions
    transfer: Transfer
    pruned: PrunedNetwork | None = None

    @property
    def fits(self) -> bool:
        """Tell whether candidates get a fitted classifier."""
        return self.options.classifier == "fit" and bool(self.classifier)

    @cached_property
    def sampler(self) -> Sampler:
        """Return the sampler, told of the network and the task where it asks."""
        sampler = self.options.sampler
        if not isinstance(sampler, ConditionedSampler):
            return sampler
        sane, template = self.transfer.sane, self.transfer.template
        layout = template.token_layout(sane.config.token_width)
        places = sane.config.positions(layout, 0, len(layout))
        return sampler.bound(SamplingContext(places, describe(self.task), fingerprint(sane)))

    def near(self, prompts: Sequence[WeightGraph], sane: SANE) -> CandidateBuilder:
        """Return the same bench with other prompts, which have the target's shapes."""
        rng = random_stream(self.options.seed, "align few")
        target = from_module(self.make())
        return replace(self, transfer=plan_transfer(prompts, target, self.classifier, sane, rng))

    def build(self, recipe: CandidateSpec, latents: torch.Tensor | None = None) -> Candidate:
        """Make and score what a recipe stands for; a SANE candidate is decoded from latents (B, T, L)."""
        module, origins, rng = self._made(recipe, latents)
        seed = int(torch.randint(2**31, (), generator=rng))
        score = accuracy(module, self.task.x_test, self.task.y_test)
        row = CandidateScore(name=self._name(recipe), kind=recipe.kind, seed=seed, before=score)
        return Candidate(row, module, recipe, origins)

    def make_only(
        self, recipe: CandidateSpec, latents: torch.Tensor | None
    ) -> tuple[nn.Module, dict[str, str]]:
        """Make what a recipe stands for without scoring it; also return where each tensor comes from."""
        return self._made(recipe, latents)[:2]

    def _made(
        self, recipe: CandidateSpec, latents: torch.Tensor | None
    ) -> tuple[nn.Module, dict[str, str], torch.Generator]:
        rng = random_stream(self.options.seed, *astuple(recipe)[:3])  # one draw, at any scale
        with seeded(rng):
            module = arrange(self.make(), torch.channels_last).to(self.options.device)
        given = {key: value.clone() for key, value in module.state_dict().items()}
        origins = dict.fromkeys(given, DEFAULT)
        if recipe.kind != "default":
            found = self._fill(module, given, recipe, latents, rng)
            origins |= {key: origin for key, origin in found.items() if key in given}
            kept = {key: value for key, value in given.items() if not self.options.selects(key)}
            module.load_state_dict(kept, strict=False)
            origins |= dict.fromkeys(kept, DEFAULT)
        elif self.pruned is not None:
            module.load_state_dict(self.pruned.merged(given))
        return module, origins, rng

    def _fill(
        self,
        module: nn.Module,
        given: Mapping[str, torch.Tensor],
        recipe: CandidateSpec,
        latents: torch.Tensor | None,
        rng: torch.Generator,
    ) -> dict[str, str]:
        """Give the module its weights, statistics and classifier; return where each comes from."""
        graph = from_module(module)
        wanted = self._wanted(graph, recipe)
        weights = {k: v for k, v in self._weights(recipe, latents, graph).items() if k in wanted}
        load_into(module, graph.replace(weights))
        if self.pruned is not None:
            module.load_state_dict(self.pruned.merged(module.state_dict()))
        origins: dict[str, str] = dict.fromkeys(weights, str(recipe.kind))
        images, size = self.task.x_train, self.options.norm_batch
        if recipe.scale == "default":
            some = images[:_SCALE_IMAGES]
            hidden = weights.keys() & given.keys() - self.classifier
            rescale(module, given, hidden, find_classifier(module, some[:2]), some)
        batches = min(self.options.norm_batches, ceil(len(images) / size))
        condition(module, images, batches, size, rng)
        origins |= dict.fromkeys((p.key for p in graph.params if p.role in RUNNING), MEASURED)
        if self.fits:
            self.fit(module)
            origins |= dict.fromkeys(self.classifier, FITTED)
        return origins

    def _wanted(self, graph: WeightGraph, recipe: CandidateSpec) -> set[str]:
        """Return the keys that a recipe generates: of its first layers, and selected by the user."""
        layers = [layer for layer in graph.layers if layer.params]
        first = layers[: ceil(recipe.layers * len(layers))]
        keys = {p.key for layer in first for p in layer.params if self.options.selects(p.key)}
        return keys if self.options.classifier == "prompt" else keys - self.classifier

    def _weights(
        self, recipe: CandidateSpec, latents: torch.Tensor | None, graph: WeightGraph
    ) -> dict[str, torch.Tensor]:
        if latents is not None:
            return self.transfer.weights(latents, graph)
        if recipe.kind == "prompt":
            return self.transfer.direct(recipe.number, graph)
        return self.transfer.mean(graph) if recipe.kind == "mean of prompts" else {}

    def fit(self, module: nn.Module) -> None:
        """Fit the module's classifier in closed form on the first training images."""
        images, labels = self.task.x_train[:_FIT_IMAGES], self.task.y_train[:_FIT_IMAGES]
        layer = find_classifier(module, images[:2])
        if layer is not None:
            fit_classifier(module, layer, images, labels)

    def _name(self, recipe: CandidateSpec) -> str:
        number = recipe.number + 1
        how = f", round {recipe.round + 1}" if recipe.round else ""
        how += ", default scale" if recipe.scale == "default" else ""
        how += f", first {recipe.layers:.0%} of the layers" if recipe.layers < 1 else ""
        if recipe.kind == "sane":
            return f"SANE candidate {number}{how}"
        if recipe.kind == "prompt":
            beside = " beside ".join(p.source for p in self.transfer.neighbors(recipe.number))
            return f"prompt {beside}{how}"
        return recipe.kind.replace("default", f"default {number}", 1) + how


def affordable(
    module: nn.Module, task: Task, options: InitializeOptions, rng: torch.Generator
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
    with threads(1 if flop(module, task) < _SMALL_FLOP else torch.get_num_threads()):
        yield


def flop(module: nn.Module, task: Task) -> int:
    """Return the floating-point operations of one image's forward pass, at least 1."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module.eval()(task.x_train[:1])
    return max(1, int(counter.get_total_flops()))
