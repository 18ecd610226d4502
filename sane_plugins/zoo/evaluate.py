"""Measure the networks of a zoo on a task's images."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sane_plugins.architectures import NO_TRUST, Trust
from sane_plugins.arguments import require_field_types
from sane_plugins.display import ShortRepr
from sane_plugins.errors import SaneError, ZooError, first_line
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.tasks import Task, logits, require_fit
from sane_plugins.zoo.index import Entry, Property
from sane_plugins.zoo.preparation import (
    GUESSED,
    PROPERTY,
    RECORDED,
    TASK,
    PixelPreparation,
    recorded,
)
from sane_plugins.zoo.store import Zoo, set_properties

MEASURED = ("test_accuracy", "train_accuracy", "gap", "test_loss", "train_loss", "finite")
_BATCH_SIZE = 500
_SAVE_SECONDS = 10.0  # longest work that a kill may lose


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Evaluate on the first `images` test images and the first `images` training images.

    `force` replaces earlier measurements. Networks are built by our architectures, and by those functions
    that the zoo names which are in `trust`. `normalize` says how images are prepared: `task`, by mean and
    deviation of the task's training images; `recorded`, as the zoo keeps it of each network; `imagenet`;
    `none`; or MEAN/DEVIATION. Without it, as recorded, and by the task where nothing is.
    """

    images: int = 4000
    device: str = "cpu"
    force: bool = False
    trust: Trust = NO_TRUST
    normalize: str | None = None

    def __post_init__(self) -> None:
        require_field_types(self)


@dataclass(eq=False, repr=False)
class Evaluated(ShortRepr):
    """Numbers of entries measured and already complete, and the reason for each one skipped.

    `preparations` counts the measured entries by how their images were prepared, `guessed` those of which
    nothing said how: their images were prepared as the task's are.
    """

    measured: int = 0
    kept: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    preparations: dict[str, int] = field(default_factory=dict)
    guessed: int = 0


def evaluate_zoo(
    folder: str | Path, task: Task, options: EvaluateOptions, report: Report = silent
) -> Evaluated:
    """Evaluate every network of a zoo that can be built and accepts the images; store it in the index.

    Existing measurements are kept unless `force`. The index is consistent at all times; after a kill the
    same call resumes.
    """
    zoo = Zoo.open(folder, options.trust)
    images = _PreparedImages(task, options)
    result = Evaluated()
    pending: dict[str, dict[str, Property]] = {}
    last_save = time.monotonic()
    for i, entry in enumerate(zoo.entries):
        report(Progress(job="measure networks", done=i, total=len(zoo), note=entry.key))
        if not options.force and all(name in entry.properties for name in MEASURED):
            result.kept += 1
            continue
        try:
            preparation, is_guess = images.preparation_of(entry)
            measured = measure_network(zoo, entry, images.prepared(preparation))
            pending[entry.key] = _merge_properties(entry, measured, options.force)
            pending[entry.key][PROPERTY] = f"{preparation}{GUESSED if is_guess else ''}"
            result.measured += 1
            result.guessed += is_guess
            count = result.preparations.get(str(preparation), 0)
            result.preparations[str(preparation)] = count + 1
        except SaneError as error:
            result.skipped[entry.key] = str(error)
        if time.monotonic() - last_save > _SAVE_SECONDS:
            set_properties(folder, pending)
            pending, last_save = {}, time.monotonic()
    if pending:
        set_properties(folder, pending)
    report(Progress(job="measure networks", done=len(zoo), total=len(zoo)))
    return result


@dataclass(frozen=True, kw_only=True)
class _EvaluationImages:
    """A task with its images (N, C, H, W) and labels (N,) on a device."""

    task: Task
    device: str
    test: tuple[torch.Tensor, torch.Tensor]
    train: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def of(cls, task: Task, options: EvaluateOptions) -> _EvaluationImages:
        """Take the first images of a task."""

        def take_first(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x[: options.images].to(options.device), y[: options.images].to(options.device)

        return cls(
            task=task,
            device=options.device,
            test=take_first(task.x_test, task.y_test),
            train=take_first(task.x_train, task.y_train),
        )


class _PreparedImages:
    """A task's images as each network is to see them; those prepared in one way are kept."""

    def __init__(self, task: Task, options: EvaluateOptions) -> None:
        self._task, self._options = task, options
        self._by_task = PixelPreparation.of(task)
        self._given = self._by_task
        if options.normalize not in (None, TASK, RECORDED):
            self._given = PixelPreparation.parse(str(options.normalize))
            self._given.apply(task.subset(1, torch.Generator()))  # raises before any work
        self._latest: tuple[PixelPreparation, _EvaluationImages] | None = None

    def preparation_of(self, entry: Entry) -> tuple[PixelPreparation, bool]:
        """Return how images are prepared for an entry, and whether nothing but the task says so.

        Raises `ZooError` where it must be recorded and is not.
        """
        normalize = self._options.normalize
        known = recorded(entry.properties) if normalize in (None, RECORDED) else None
        if known is not None:
            return known, False
        if normalize == RECORDED:
            raise ZooError(
                entry.key,
                f"the zoo has no property '{PROPERTY}' of it",
                "it says how a network's images are prepared",
                "give --normalize MEAN/DEVIATION",
            )
        return self._given, normalize is None

    def prepared(self, preparation: PixelPreparation) -> _EvaluationImages:
        """Return the images prepared in one way."""
        if self._latest is None or self._latest[0] != preparation:
            is_as_it_is = str(preparation) == str(self._by_task)  # as far as it is kept
            task = self._task if is_as_it_is else preparation.apply(self._first_images())
            self._latest = preparation, _EvaluationImages.of(task, self._options)
        return self._latest[1]

    def _first_images(self) -> Task:
        """Return the task with no more images than are measured on."""
        count, task = self._options.images, self._task
        return replace(
            task,
            x_train=task.x_train[:count],
            y_train=task.y_train[:count],
            x_test=task.x_test[:count],
            y_test=task.y_test[:count],
            x_validation=None,
            y_validation=None,
        )


def measure_network(zoo: Zoo, entry: Entry, images: _EvaluationImages) -> dict[str, Property]:
    """Return all measurements of one network. Raises `SaneError` if it cannot run on the images."""
    state = zoo.state_dict(entry)
    module = _build(zoo, entry)
    require_fit(module, images.task)
    module.to(images.device)
    test, train = (
        _accuracy_and_loss(module, *images.test),
        _accuracy_and_loss(module, *images.train),
    )
    return {
        "test_accuracy": test[0],
        "train_accuracy": train[0],
        "gap": train[0] - test[0],
        "test_loss": test[1],
        "train_loss": train[1],
        "finite": all(bool(x.isfinite().all()) for x in state.values()),
    }


def _build(zoo: Zoo, entry: Entry) -> nn.Module:
    """Build a network in float32."""
    try:
        return zoo.module(entry).float()
    except SaneError:
        raise
    except Exception as error:  # user code, which may raise anything
        raise ZooError(
            f"{zoo.name}:{entry.key}",
            f"its factory raises {type(error).__name__} ({first_line(error)})",
            "a network that runs is needed",
            "correct the function, or add it with another --factory",
        ) from error


@torch.inference_mode()
def _accuracy_and_loss(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Return accuracy and mean loss; a NaN or infinite loss becomes the largest float32."""
    correct, loss = 0, 0.0
    for images, labels in zip(x.split(_BATCH_SIZE), y.split(_BATCH_SIZE), strict=True):
        outputs = logits(module, images).float()
        correct += int((outputs.argmax(1) == labels).sum())
        loss += float(cross_entropy(outputs, labels, reduction="none").double().sum())
    mean = torch.tensor(loss / len(y)).float()
    return correct / len(y), float(mean.nan_to_num(nan=torch.finfo(torch.float32).max))


def _merge_properties(
    entry: Entry, measured: Mapping[str, Property], force: bool
) -> dict[str, Property]:
    """Merge new and existing properties; the gap always follows from the merged accuracies."""
    existing = (
        {}
        if force
        else {name: entry.properties[name] for name in MEASURED if name in entry.properties}
    )
    merged = {**measured, **existing}
    if "gap" not in existing:
        merged["gap"] = float(merged["train_accuracy"]) - float(merged["test_accuracy"])
    return merged
