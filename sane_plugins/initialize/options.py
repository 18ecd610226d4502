"""The options of an initialisation.

Light at import: the command line shows its help from here without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sane_plugins.arguments import require_field_types

if TYPE_CHECKING:
    from sane_plugins.generation import Sampler


# What the commands take at most: beyond it, a number was mistyped, or is a stranger's.
MOST: Mapping[str, int] = {
    "candidates": 100_000,
    "keep": 100,
    "rounds": 100,
    "few_shot": 100,
    "few_shot_epochs": 1_000,
    "refine": 10_000,
    "epochs": 1_000,
    "rung": 12,
}


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


def _default_sampler() -> Sampler:
    from sane_plugins.generation import KDE

    return KDE()


# Flat, not nested by stage: a call names what it changes (`InitializeOptions(candidates=4, keep=2)`), most
# options serve several stages (`keep`, `seed`, `budget`), and files say them flat in their provenance.
@dataclass(frozen=True, kw_only=True)
class InitializeOptions:
    """How candidates are drawn and chosen.

    `candidates` are drawn and ranked before training; the best `keep` of them are trained for an epoch, and
    so are `defaults` default initialisations (None: as many as `keep`), and as many with a fitted
    classifier, which are the best of as many draws as there are candidates. `classifier`: "fit" solves it in
    closed form on training images (the default initialisation is then tried both as it is and with a
    fitted classifier), "default" leaves it at its default initialisation, "prompt" keeps the prompts'
    where its shape allows. `validation` is the share of the training images that is held out to choose by,
    at most `validation_images`; `images` caps the training images (None: 10,000, or what fits into memory).
    `sane` is a SANE file (None: the embedded one).
    Of what is written, the statistics of batch norm are measured on at most `norm_batches` batches of
    `norm_batch` images, and the classifier is fitted on at most `fit_images`.

    `search`: "subsample" draws once; "bootstrap" draws `rounds` times, each time near the best latents of all
    rounds before, and returns the best of any round. `epochs` of training are the last rung of the scores.
    `few_shot` of the best are trained on the task for `few_shot_epochs`, and candidates are then drawn near
    these; 0: none. `refine` is how many steps are taken on the latents of the chosen network, to lower its
    loss on training images; they are undone where its accuracy on held-out ones falls. `budget` is the time
    for all of it in seconds of an idle machine (None: not measured; a busy one may take up to 4 times as
    long): each `rung` halves the work, and the first that fits into the budget is taken, as it was measured
    before the work (None), or the one that is named, so that the same is done on any machine. Only tensors
    whose names match a glob of `include`, and none of `exclude`, are initialised; all others keep their
    default.
    `pruned`: the target is a pruned network, only whose zeros are initialised and trained. Without
    `scored`, a host gets one generated network, and nothing is compared.
    """

    sampler: Sampler = field(default_factory=_default_sampler)
    candidates: int = 16
    keep: int = 3
    defaults: int | None = None
    classifier: Literal["fit", "default", "prompt"] = "fit"
    validation: float = 0.2
    validation_images: int = 2000
    images: int | None = None
    norm_batches: int = 50  # statistics of batch norm: see `grafting/batchnorm.py`
    norm_batch: int = 32
    fit_images: int = 2000
    train: TrainOptions = field(default_factory=TrainOptions)
    seed: int = 0
    sane: Path | None = None
    search: Literal["subsample", "bootstrap"] = "subsample"
    rounds: int = 3
    few_shot: int = 0
    few_shot_epochs: int = 2
    refine: int = 0
    epochs: int = 1
    budget: float | None = None
    rung: int | None = None
    device: str = "cpu"
    pruned: bool = False
    scored: bool = True
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_field_types(self)

    def selects(self, key: str) -> bool:
        """Return whether the tensor of that name is to be initialised."""
        is_included = not self.include or any(fnmatchcase(key, glob) for glob in self.include)
        return is_included and not any(fnmatchcase(key, glob) for glob in self.exclude)

    @property
    def default_count(self) -> int:
        """Return how many default initialisations are kept."""
        return self.keep if self.defaults is None else self.defaults

    @property
    def search_rounds(self) -> int:
        """Return how often candidates are drawn."""
        return self.rounds if self.search == "bootstrap" else 1
