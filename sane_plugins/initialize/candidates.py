"""Candidates for an initialisation: their specification, the network built from it, and its score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from math import ceil
from typing import Literal

import torch
from torch import nn

from sane_plugins.generation import Transfer, rescale
from sane_plugins.grafting import condition, find_classifier, fit_classifier
from sane_plugins.initialize.problem import InitializationProblem
from sane_plugins.initialize.training import set_memory_format
from sane_plugins.runtime import random_stream, seeded
from sane_plugins.weights import RUNNING, WeightGraph, load_nearest

_CLASSIFIER_FIT_IMAGES = 2000
_RESCALE_IMAGES = 64
Scale = Literal["own", "default"]


class Label(str, Enum):
    """A closed set of labels: the value is used in JSON, seed streams and tables, and never parsed."""

    def __str__(self) -> str:
        return str(self.value)

    @property
    def label(self) -> str:
        """Return the text shown to users."""
        return str(self.value)


class Family(Label):
    """The families of initialisations that users choose between."""

    DEFAULT = "default"
    PROMPT = "prompt"
    SANE = "sane"


class Kind(Label):
    """How an initialisation is made, the plainest first."""

    DEFAULT = "default"
    DEFAULT_FITTED = "default, classifier fitted"
    PROMPT = "prompt"
    MEAN_OF_PROMPTS = "mean of prompts"
    SANE = "sane"

    @property
    def family(self) -> Family:
        """Return the family: the mean of prompts is a prompt, a fitted default is a default."""
        if self in (Kind.DEFAULT, Kind.DEFAULT_FITTED):
            return Family.DEFAULT
        return Family.SANE if self is Kind.SANE else Family.PROMPT

    @property
    def is_generated(self) -> bool:
        """Return whether the weights come from prompts, decoded or as they are."""
        return self.family is not Family.DEFAULT

    @property
    def plainness(self) -> int:
        """Return its rank among the kinds: 0 is the plainest, which wins ties."""
        return [*Kind].index(self)


class Origin(Label):
    """Where the values of a tensor come from."""

    DEFAULT = "default"
    PROMPT = "prompt"
    MEAN_OF_PROMPTS = "mean of prompts"
    SANE = "sane"
    MEASURED = "measured on the task"
    FITTED = "fitted to the task"


@dataclass(frozen=True)
class CandidateSpec:
    """The specification of a candidate: together with the seed, it determines the network.

    `scale` is that of its hidden layers: as generated, or that of the default initialisation. `layers` is the
    fraction of the layers, from the input on, that are generated; the others keep their default.
    """

    kind: Kind
    number: int = 0
    round: int = 0
    scale: Scale = "own"
    layers: float = 1.0

    def name(self, transfer: Transfer) -> str:
        """Return the candidate's name in tables; a prompt's is that of its network."""
        number = self.number + 1
        names = {
            Kind.DEFAULT: f"default {number}",
            Kind.DEFAULT_FITTED: f"default {number}, classifier fitted",
            Kind.MEAN_OF_PROMPTS: Kind.MEAN_OF_PROMPTS.label,
            Kind.SANE: f"SANE candidate {number}",
        }
        name = names.get(self.kind)
        if name is None:
            name = f"prompt {' beside '.join(p.source for p in transfer.neighbors(self.number))}"
        name += f", round {self.round + 1}" if self.round else ""
        name += ", default scale" if self.scale == "default" else ""
        return name + (f", first {self.layers:.0%} of the layers" if self.layers < 1 else "")


@dataclass(frozen=True, kw_only=True)
class CandidateScore:
    """One initialisation and its accuracy on held-out images.

    `before` is without training, `after` after the last epoch if it came so far, and `curve` holds (epochs,
    accuracy) at each rung that it reached. `seed` orders the images of its training.
    """

    name: str
    kind: Kind
    seed: int
    before: float
    after: float | None = None
    curve: tuple[tuple[float, float], ...] = ()
    chosen: bool = False

    @property
    def last(self) -> float:
        """Return the accuracy where its training ended."""
        return self.curve[-1][1] if self.curve else self.before

    @property
    def epochs(self) -> float:
        """Return how long it was trained."""
        return self.curve[-1][0] if self.curve else 0.0


@dataclass(frozen=True, eq=False)
class Candidate:
    """A network at initial weights. `origins` says of each tensor's name where its values come from."""

    spec: CandidateSpec
    module: nn.Module
    origins: Mapping[str, Origin]
    score: CandidateScore


@dataclass(frozen=True, eq=False)
class BuiltNetwork:
    """A network made by `CandidateBuilder`, not yet scored; `seed` orders its training images."""

    module: nn.Module
    origins: Mapping[str, Origin]
    seed: int


@dataclass(frozen=True)
class CandidateBuilder:
    """Builds the network of a spec: the same problem and spec give the same network."""

    problem: InitializationProblem

    def build(self, spec: CandidateSpec, latents: torch.Tensor | None = None) -> BuiltNetwork:
        """Build a network at its initial weights; a SANE candidate is decoded from latents (B, T, L).

        B is the number of prompts placed side by side in it.
        """
        options, pruned = self.problem.options, self.problem.pruned
        # Scale and layers stay out of the seed: variants of a candidate share its default draw.
        rng = random_stream(options.seed, spec.kind.value, spec.number, spec.round)
        with seeded(rng):
            module = self.problem.build_network()
        module = set_memory_format(module, torch.channels_last).to(options.device)
        default = {key: value.clone() for key, value in module.state_dict().items()}
        origins = dict.fromkeys(default, Origin.DEFAULT)
        if spec.kind is not Kind.DEFAULT:
            filled = self._fill(module, default, spec, latents, rng)
            origins |= {key: origin for key, origin in filled.items() if key in default}
            unselected = {key: value for key, value in default.items() if not options.selects(key)}
            module.load_state_dict(unselected, strict=False)
            origins |= dict.fromkeys(unselected, Origin.DEFAULT)
        elif pruned is not None:
            module.load_state_dict(pruned.with_survivors(default))
        return BuiltNetwork(module, origins, int(torch.randint(2**31, (), generator=rng)))

    def _fill(
        self,
        module: nn.Module,
        default: Mapping[str, torch.Tensor],
        spec: CandidateSpec,
        latents: torch.Tensor | None,
        rng: torch.Generator,
    ) -> dict[str, Origin]:
        """Give the module its weights, norm statistics and classifier; return where each comes from."""
        problem, options = self.problem, self.problem.options
        graph = problem.read(module)
        keys = self._generated_keys(graph, spec)
        weights = {k: v for k, v in self._weights(spec, latents, graph).items() if k in keys}
        # Of generated values, a pruned or parametrised module takes what it can hold.
        load_nearest(module, graph.replace(weights))
        if problem.pruned is not None:
            module.load_state_dict(problem.pruned.with_survivors(module.state_dict()))
        origins = dict.fromkeys(weights, Origin(spec.kind.value)) if weights else {}
        images = problem.task.x_train
        if spec.scale == "default":
            sample = images[:_RESCALE_IMAGES]
            hidden = weights.keys() & default.keys() - problem.classifier
            rescale(module, default, hidden, find_classifier(module, sample[:2]), sample)
        batches = min(options.norm_batches, ceil(len(images) / options.norm_batch))
        condition(module, images, batches, options.norm_batch, rng)
        running_keys = (p.key for p in graph.params if p.role in RUNNING)
        origins |= dict.fromkeys(running_keys, Origin.MEASURED)
        if problem.fits_classifier:
            fit_task_classifier(module, problem)
            origins |= dict.fromkeys(problem.classifier, Origin.FITTED)
        return origins

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
        transfer = self.problem.transfer
        if latents is not None:
            return transfer.weights(latents, default)
        if spec.kind is Kind.PROMPT:
            return transfer.direct(spec.number, default)
        return transfer.mean(default) if spec.kind is Kind.MEAN_OF_PROMPTS else {}


def fit_task_classifier(module: nn.Module, problem: InitializationProblem) -> None:
    """Fit the module's classifier in closed form on the first training images."""
    images = problem.task.x_train[:_CLASSIFIER_FIT_IMAGES]
    labels = problem.task.y_train[:_CLASSIFIER_FIT_IMAGES]
    layer = find_classifier(module, images[:2])
    if layer is not None:
        fit_classifier(module, layer, images, labels)
