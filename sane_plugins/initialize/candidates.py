"""Candidates for an initialisation: the network built from a specification."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil

import torch
from torch import nn

from sane_plugins.generation import RefineOptions, refine, rescale
from sane_plugins.grafting import (
    LeftOutLosses,
    RidgeFit,
    condition,
    find_classifier,
    fit_classifier,
    softness_of,
)
from sane_plugins.initialize.kinds import CandidateScore, CandidateSpec, Kind, Origin
from sane_plugins.initialize.problem import InitializationProblem
from sane_plugins.initialize.training import set_memory_format
from sane_plugins.initialize.transplants import NothingWrittenError, Transplants
from sane_plugins.progress import Report, silent
from sane_plugins.runtime import random_stream, seeded
from sane_plugins.weights import (
    RUNNING,
    WeightGraph,
    copy_module,
    load_nearest,
    names_in_use,
)

_RESCALE_IMAGES = 64


@dataclass(frozen=True, eq=False)
class BuiltNetwork:
    """A network made by `CandidateBuilder`; `origins` says of each tensor's name where its values come from.

    `kept` are tensors that nothing may change: those that the user left out. `rng` is where the build's
    random numbers stand. `notes` are those of a transfer.
    """

    spec: CandidateSpec
    module: nn.Module
    origins: Mapping[str, Origin] = field(default_factory=dict)
    rng: torch.Generator = field(default_factory=torch.Generator)
    kept: Mapping[str, torch.Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def seed(self) -> int:
        """Return the seed that orders its training images."""
        return int(torch.randint(2**31, (), generator=copy_generator(self.rng)))


@dataclass(frozen=True, eq=False)
class Candidate:
    """A network at initial weights, and what is known of it.

    `losses` are those that it was ranked by, `training_fit` is the ridge classifier on the features which
    training starts from: another one where the network keeps its own statistics. `answers` (M,) says which
    held-out images it had right where its accuracy was best. None where it was not measured.
    """

    built: BuiltNetwork
    score: CandidateScore
    losses: LeftOutLosses | None = None
    training_fit: RidgeFit | None = None
    answers: torch.Tensor | None = None

    @property
    def spec(self) -> CandidateSpec:
        """Return what determines the network."""
        return self.built.spec

    @property
    def module(self) -> nn.Module:
        """Return the network at its initial weights."""
        return self.built.module


@dataclass(frozen=True)
class CandidateBuilder:
    """Builds the network of a spec: the same problem and spec give the same network."""

    problem: InitializationProblem
    report: Report = silent

    @cached_property
    def _transplants(self) -> Transplants:
        return Transplants(self.problem, self.report)

    def build(self, spec: CandidateSpec, latents: torch.Tensor | None = None) -> BuiltNetwork:
        """Build a network at its initial weights; a SANE candidate is decoded from latents (B, T, L).

        B is the number of prompts placed side by side in it.
        """
        return self.finish(self.assemble(spec, latents))

    def assemble(self, spec: CandidateSpec, latents: torch.Tensor | None = None) -> BuiltNetwork:
        """Build a network whose norm statistics and classifier are still to be made."""
        options, pruned = self.problem.options, self.problem.pruned
        # Scale, layers and method stay out of the seed: variants of a candidate share its default draw.
        rng = random_stream(options.seed, spec.kind.value, spec.number, spec.round)
        with seeded(rng):
            module = self.problem.build_network()
        module = set_memory_format(module, torch.channels_last).to(options.device)
        default, in_use = copy_state(module), names_in_use(module)
        origins = {in_use.get(key, key): Origin.DEFAULT for key in default}
        notes: tuple[str, ...] = ()
        kept: dict[str, torch.Tensor] = {}
        if spec.kind.is_by_method:
            filled, notes = self._transplant(module, default, in_use, spec)
        elif spec.kind is not Kind.DEFAULT:
            filled = self._fill(module, default, spec, latents)
        else:
            filled = {}
        if spec.kind is not Kind.DEFAULT:
            kept = {
                key: value
                for key, value in default.items()
                if not options.selects(in_use.get(key, key))
            }
            origins |= {key: origin for key, origin in filled.items() if key in origins}
        if pruned is not None:
            module.load_state_dict(pruned.with_survivors(module.state_dict()))
        return BuiltNetwork(spec, module, origins, rng, kept, notes)

    def finish(self, built: BuiltNetwork) -> BuiltNetwork:
        """Measure the norm statistics and fit the classifier, in place, whatever they were before."""
        problem, options, spec = self.problem, self.problem.options, built.spec
        if spec.kind is Kind.DEFAULT:
            return built
        module, rng = built.module, copy_generator(built.rng)
        images, origins = problem.task.x_train, dict(built.origins)
        if spec.statistics == "measured":
            batches = min(options.norm_batches, ceil(len(images) / options.norm_batch))
            condition(module, images, batches, options.norm_batch, rng)
            running = {p.key for p in problem.graph.params if p.role in RUNNING}
            origins |= dict.fromkeys(running & origins.keys(), Origin.MEASURED)
        if problem.fits_classifier:
            fit_task_classifier(module, problem, spec.kind)
            origins |= dict.fromkeys(problem.classifier & origins.keys(), Origin.FITTED)
        module.load_state_dict(built.kept, strict=False)
        in_use = names_in_use(module)
        origins |= dict.fromkeys((in_use.get(key, key) for key in built.kept), Origin.DEFAULT)
        return replace(built, origins=origins, rng=rng)

    def refined(self, built: BuiltNetwork, report: Report = silent) -> BuiltNetwork:
        """Return a finished network after the options' steps on its latents, finished again.

        Statistics of norms no longer fit its weights, whatever they were: they are measured. The method:
        docs/explanation/sane.md, section 19.2. Raises `TaskError` where a loss is not finite.
        """
        problem, options = self.problem, self.problem.options
        images, labels = problem.task.x_train, problem.task.y_train
        found = replace(built, module=copy_module(built.module))
        rng, steps = random_stream(options.seed, "refine"), RefineOptions(steps=options.refine)
        sane = deepcopy(problem.sane).to(options.device)  # whose gradients are most of the work
        refine(found.module, sane, images, labels, steps, rng, report)
        spec = replace(built.spec, statistics="measured")
        return replace(self.finish(replace(found, spec=spec)), spec=built.spec)

    def _transplant(
        self,
        module: nn.Module,
        default: Mapping[str, torch.Tensor],
        in_use: Mapping[str, str],
        spec: CandidateSpec,
    ) -> tuple[dict[str, Origin], tuple[str, ...]]:
        """Let a method write a prompt's weights into the module; return where each comes from, and notes."""
        problem = self.problem
        transplant = self._transplants.write(module, default, spec)
        allowed = self._generated_keys(problem.graph, spec)
        others = {k: v for k, v in default.items() if in_use.get(k, k) not in allowed}
        module.load_state_dict(others, strict=False)
        set_memory_format(module, torch.channels_last)
        is_transfer = spec.kind is Kind.TRANSFER
        origin = Origin.TRANSFERRED if is_transfer else Origin.STRUCTURED
        written = dict.fromkeys(allowed & {*transplant.origins}, origin)
        if not written:
            raise NothingWrittenError(
                spec.method, "it wrote no tensor", "some layer must suit it", ""
            )
        return written, tuple(transplant.notes)

    def _fill(
        self,
        module: nn.Module,
        default: Mapping[str, torch.Tensor],
        spec: CandidateSpec,
        latents: torch.Tensor | None,
    ) -> dict[str, Origin]:
        """Give the module its weights; return where each comes from."""
        problem = self.problem
        graph = problem.read(module)
        keys = self._generated_keys(graph, spec)
        weights = {k: v for k, v in self._weights(spec, latents, graph).items() if k in keys}
        # Of generated values, a pruned or parametrised module takes what it can hold.
        load_nearest(module, graph.replace(weights))
        if spec.scale == "default":
            sample = problem.task.x_train[:_RESCALE_IMAGES]
            hidden = weights.keys() & default.keys() - problem.classifier
            rescale(module, default, hidden, find_classifier(module, sample[:2]), sample)
        return dict.fromkeys(weights, Origin(spec.kind.value)) if weights else {}

    def _generated_keys(self, graph: WeightGraph, spec: CandidateSpec) -> set[str]:
        """Return the keys that a spec generates: of its first layers, and selected by the user."""
        options = self.problem.options
        layers = [layer for layer in graph.layers if layer.params]
        generated_layers = layers[: ceil(spec.layers * len(layers))]
        keys = {p.key for layer in generated_layers for p in layer.params if options.selects(p.key)}
        return keys if options.classifier == "prompt" else keys - self.problem.classifier

    def _weights(
        self, spec: CandidateSpec, latents: torch.Tensor | None, default: WeightGraph
    ) -> dict[str, torch.Tensor]:
        if spec.kind is Kind.DEFAULT_FITTED:
            return {}
        transfer = self.problem.sane_transfer
        if latents is not None:
            return transfer.weights(latents, default)
        if spec.kind is Kind.PROMPT:
            return transfer.direct(spec.number, default)
        return transfer.mean(default)


def fit_task_classifier(module: nn.Module, problem: InitializationProblem, kind: Kind) -> None:
    """Fit the module's classifier in closed form on the first training images."""
    count = problem.options.fit_images
    images, labels = problem.task.x_train[:count], problem.task.y_train[:count]
    layer = find_classifier(module, images[:2])
    if layer is not None:
        fit_classifier(module, layer, images, labels, classifier_softness(module, kind))


def classifier_softness(module: nn.Module, kind: Kind) -> float:
    """Return what the outputs of a fitted classifier are divided by: more than 1 for some transfers alone."""
    return softness_of(module) if kind is Kind.TRANSFER else 1.0


def copy_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of a module's tensors."""
    return {key: value.clone() for key, value in module.state_dict().items()}


def copy_generator(rng: torch.Generator) -> torch.Generator:
    """Return a generator that draws what another would draw next, and leaves that where it stands."""
    copied = torch.Generator(rng.device)
    copied.set_state(rng.get_state())
    return copied
