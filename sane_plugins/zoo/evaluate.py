"""Measure the networks of a zoo on a task's images."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sane_plugins.arguments import require_field_types
from sane_plugins.display import ShortRepr
from sane_plugins.errors import SaneError, ZooError, first_line
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.tasks import Task, logits, require_fit
from sane_plugins.zoo.index import Entry, Property
from sane_plugins.zoo.store import Zoo, set_properties

MEASURED = ("test_accuracy", "train_accuracy", "gap", "test_loss", "train_loss", "finite")
_BATCH = 500
_SAVE_SECONDS = 10.0  # seconds of work that a kill may lose


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """At most `images` test images and as many training images, the first ones, are measured on.

    `force` replaces what was measured before.
    """

    images: int = 4000
    device: str = "cpu"
    force: bool = False

    def __post_init__(self) -> None:
        require_field_types(self)


@dataclass(eq=False, repr=False)
class Evaluated(ShortRepr):
    """How many entries were measured, how many had all measurements before, and why others were not."""

    measured: int = 0
    kept: int = 0
    skipped: dict[str, str] = field(default_factory=dict)


def evaluate_zoo(
    folder: str | Path, task: Task, options: EvaluateOptions, report: Report = silent
) -> Evaluated:
    """Measure every network of a zoo that can be built and takes the images; write that into its index.

    What an entry has already stays, unless `force`. The index is whole at any moment; after a kill the same
    call goes on.
    """
    zoo = Zoo.open(folder)
    images = _Images.of(task, options)
    done = Evaluated()
    pending: dict[str, dict[str, Property]] = {}
    saved = time.monotonic()
    for i, entry in enumerate(zoo.entries):
        report(Progress(job="measure networks", done=i, total=len(zoo), note=entry.key))
        if not options.force and all(name in entry.properties for name in MEASURED):
            done.kept += 1
            continue
        try:
            pending[entry.key] = _merge(entry, measure_network(zoo, entry, images), options.force)
            done.measured += 1
        except SaneError as error:
            done.skipped[entry.key] = str(error)
        if time.monotonic() - saved > _SAVE_SECONDS:
            set_properties(folder, pending)
            pending, saved = {}, time.monotonic()
    if pending:
        set_properties(folder, pending)
    report(Progress(job="measure networks", done=len(zoo), total=len(zoo)))
    return done


@dataclass(frozen=True, kw_only=True)
class _Images:
    """A task, and its images (N, C, H, W) and labels (N,) on a device."""

    task: Task
    device: str
    test: tuple[torch.Tensor, torch.Tensor]
    train: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def of(cls, task: Task, options: EvaluateOptions) -> _Images:
        """Return the first images of a task."""

        def part(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x[: options.images].to(options.device), y[: options.images].to(options.device)

        return cls(
            task=task,
            device=options.device,
            test=part(task.x_test, task.y_test),
            train=part(task.x_train, task.y_train),
        )


def measure_network(zoo: Zoo, entry: Entry, images: _Images) -> dict[str, Property]:
    """Return all that is measured of one network. Raises `SaneError` where it cannot be run on the images."""
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
    """Build one network in single precision."""
    try:
        return zoo.module(entry).float()
    except SaneError:
        raise
    except Exception as error:  # the user's own code, which may raise anything
        raise ZooError(
            f"{zoo.name}:{entry.key}",
            f"its factory raises {type(error).__name__} ({first_line(error)})",
            "a network that runs is needed",
            "correct the function, or add it with another --factory",
        ) from error


@torch.inference_mode()
def _accuracy_and_loss(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Return accuracy and mean loss; a loss that is not finite becomes the largest float."""
    correct, loss = 0, 0.0
    for images, labels in zip(x.split(_BATCH), y.split(_BATCH), strict=True):
        outputs = logits(module, images).float()
        correct += int((outputs.argmax(1) == labels).sum())
        loss += float(cross_entropy(outputs, labels, reduction="none").double().sum())
    mean = torch.tensor(loss / len(y)).float()
    return correct / len(y), float(mean.nan_to_num(nan=torch.finfo(torch.float32).max))


def _merge(entry: Entry, measured: Mapping[str, Property], force: bool) -> dict[str, Property]:
    """Return what is to be written; the gap is always that of the accuracies beside it."""
    existing = (
        {}
        if force
        else {name: entry.properties[name] for name in MEASURED if name in entry.properties}
    )
    merged = {**measured, **existing}
    if "gap" not in existing:
        merged["gap"] = float(merged["train_accuracy"]) - float(merged["test_accuracy"])
    return merged
