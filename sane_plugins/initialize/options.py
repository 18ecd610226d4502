"""What an initialisation is asked for, and what its candidates are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from torch import nn

from sane_plugins.generation import KDE, Sampler
from sane_plugins.initialize.training import TrainOptions

Kind = Literal["default", "default, classifier fitted", "prompt", "mean of prompts", "sane"]
Scale = Literal["own", "default"]


@dataclass(frozen=True, kw_only=True)
class InitializeOptions:
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

    `search`: "subsample" draws once; "bootstrap" draws `rounds` times, each time near the best latents of all
    rounds before, and returns the best of any round. `epochs` of training are the last rung of the scores.
    `few_shot` of the best are trained on the task for `few_shot_epochs`, and candidates are then drawn near
    these; 0: none. `budget` bounds drawing and scoring in seconds (None: no bound). Only tensors whose
    names match a glob of `include`, and none of `exclude`, are initialised; all others keep their default.
    `pruned`: the target is a pruned network, only whose zeros are initialised and trained. Without
    `scored`, a host gets one generated network, and nothing is compared.
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
    search: Literal["subsample", "bootstrap"] = "subsample"
    rounds: int = 3
    few_shot: int = 0
    few_shot_epochs: int = 2
    epochs: int = 1
    budget: float | None = None
    device: str = "cpu"
    pruned: bool = False
    scored: bool = True
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def selects(self, key: str) -> bool:
        """Tell whether the tensor of that name is to be initialised."""
        wanted = not self.include or any(fnmatchcase(key, glob) for glob in self.include)
        return wanted and not any(fnmatchcase(key, glob) for glob in self.exclude)


@dataclass(frozen=True)
class CandidateSpec:
    """Which draw a candidate is: with the seed, all that it takes to make it again.

    `scale` is that of its hidden layers: as generated, or that of the default initialisation. `layers` is the
    share of the layers, from the input on, that are generated; the others keep their default.
    """

    kind: Kind
    number: int = 0
    round: int = 0
    scale: Scale = "own"
    layers: float = 1.0


@dataclass(frozen=True, kw_only=True)
class CandidateScore:
    """One initialisation and its accuracy on held-out images.

    `before` is without training, `after` after the last epoch if it came so far, and `curve` holds (epochs,
    accuracy) at each rung that it reached.
    """

    name: str
    kind: Kind
    seed: int
    before: float
    after: float | None = None
    curve: tuple[tuple[float, float], ...] = ()
    chosen: bool = False


@dataclass(frozen=True)
class Candidate:
    """Initial weights, in a module; `origins` says of each tensor's name where its values come from."""

    row: CandidateScore
    module: nn.Module
    recipe: CandidateSpec
    origins: Mapping[str, str]
