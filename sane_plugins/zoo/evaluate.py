"""Measure the networks of a zoo on a task's images."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
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
from sane_plugins.zoo.store import Zoo, set_properties

MEASURED = ("test_accuracy", "train_accuracy", "gap", "test_loss", "train_loss", "finite")
_BATCH_SIZE = 500
_SAVE_SECONDS = 10.0  # longest work that a kill may lose


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Evaluate on the first `images` test images and the first `images` training images.

    `force` replaces earlier measurements. Networks are built by our architectures, and by those functions
    that the zoo names which are in `trust`.
    """

    images: int = 4000
    device: str = "cpu"
    force: bool = False
    trust: Trust = NO_TRUST

    def __post_init__(self) -> None:
        require_field_types(self)


@dataclass(eq=False, repr=False)
class Evaluated(ShortRepr):
    """Numbers of entries measured and already complete, and the reason for each one skipped."""

    measured: int = 0
    kept: int = 0
    skipped: dict[str, str] = field(default_factory=dict)


def evaluate_zoo(
    folder: str | Path, task: Task, options: EvaluateOptions, report: Report = silent
) -> Evaluated:
    """Evaluate every network of a zoo that can be built and accepts the images; store it in the index.

    Existing measurements are kept unless `force`. The index is consistent at all times; after a kill the
    same call resumes.
    """
    zoo = Zoo.open(folder, options.trust)
    images = _EvaluationImages.of(task, options)
    result = Evaluated()
    pending: dict[str, dict[str, Property]] = {}
    last_save = time.monotonic()
    for i, entry in enumerate(zoo.entries):
        report(Progress(job="measure networks", done=i, total=len(zoo), note=entry.key))
        if not options.force and all(name in entry.properties for name in MEASURED):
            result.kept += 1
            continue
        try:
            pending[entry.key] = _merge_properties(
                entry, measure_network(zoo, entry, images), options.force
            )
            result.measured += 1
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
