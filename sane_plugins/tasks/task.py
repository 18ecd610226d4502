"""A target task: standardised labelled images, and what was done to their pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import interpolate

from sane_plugins.display import ShortRepr
from sane_plugins.errors import TaskError
from sane_plugins.tasks.image_arrays import require_task_values
from sane_plugins.tasks.image_files import require_resizable
from sane_plugins.tasks.splitting import stratified_split
from sane_plugins.tasks.standardization import standardize


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Task(ShortRepr):
    """Images (N, C, H, W) float32 with labels (N,) int64 starting at 0, for training and testing.

    Images have mean 0 and deviation 1 per channel over the training images: a pixel of brightness v, from 0
    (black) to 1 (white), became (v - pixel_mean) / pixel_deviation, where both have a number per
    channel, and where v is the pixel's value in the source divided by `pixel_unit`, such as 255. Without
    them the images count as what the source holds. `classes` are the classes' names, by label. Images
    to choose by are those of `x_validation`, with labels; without them some training images serve.
    """

    name: str
    x_train: torch.Tensor
    y_train: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    classes: tuple[str, ...]
    pixel_mean: tuple[float, ...] = ()
    pixel_deviation: tuple[float, ...] = ()
    pixel_unit: float = 1.0
    x_validation: torch.Tensor | None = None
    y_validation: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for name, value in (("pixel_mean", 0.0), ("pixel_deviation", 1.0)):
            if not getattr(self, name):
                object.__setattr__(self, name, (value,) * self.channels)
            if (count := len(getattr(self, name))) != self.channels:
                raise TaskError(
                    f"{self.name}, {name}",
                    f"it has {count} numbers",
                    f"images of {self.channels} channels need one for each",
                    "give as many, or () where the images are what the source holds",
                )

    @property
    def has_test_images(self) -> bool:
        """Return whether the test images are others than those to train on, or to choose by."""
        return self.x_test is not self.x_train and self.x_test is not self.x_validation

    @property
    def channels(self) -> int:
        """Return the number of image channels."""
        return self.x_train.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width in pixels."""
        return self.x_train.shape[2], self.x_train.shape[3]

    def resized(self, size: int | tuple[int, int]) -> Task:
        """Return the task at another image size in pixels (bilinear, antialiased), standardised again."""
        size = (size, size) if isinstance(size, int) else size
        if size == self.size:
            return self
        require_resizable(self.name, self.size, size)
        images = sum(len(x) for x in self._images())
        require_task_values(self.name, images * self.channels * size[0] * size[1])
        task = self._with_images(
            lambda x: interpolate(
                x, size=size, mode="bilinear", antialias=True, align_corners=False
            )
        )
        return task.standardized()

    def standardized(self) -> Task:
        """Return the task with mean 0 and deviation 1 per channel over its training images."""
        images, means, deviations = standardize(self.name, self._images())
        changed: dict[str, Any] = self._named(images)
        before = tuple(zip(self.pixel_mean, self.pixel_deviation, strict=True))
        return replace(
            self,
            **changed,
            pixel_mean=tuple(m + d * mean for (m, d), mean in zip(before, means, strict=True)),
            pixel_deviation=tuple(
                d * deviation for (_, d), deviation in zip(before, deviations, strict=True)
            ),
        )

    def prepared(self, mean: Sequence[float], deviation: Sequence[float]) -> Task:
        """Return the task with pixels v, of 0 to 1, as (v - mean) / deviation, a number per channel each."""
        now = [torch.tensor(x).view(1, -1, 1, 1) for x in (self.pixel_mean, self.pixel_deviation)]
        new = [torch.tensor([*x]).view(1, -1, 1, 1) for x in (mean, deviation)]
        factor, offset = now[1] / new[1], (now[0] - new[0]) / new[1]
        task = self._with_images(lambda x: x * factor.to(x) + offset.to(x))
        return replace(task, pixel_mean=tuple(mean), pixel_deviation=tuple(deviation))

    def repeated(self, channels: int) -> Task:
        """Return the task with its single grey channel repeated."""
        images = [x.expand(-1, channels, -1, -1).contiguous() for x in self._images()]
        changed: dict[str, Any] = self._named(images)
        return replace(
            self,
            **changed,
            pixel_mean=self.pixel_mean * channels,
            pixel_deviation=self.pixel_deviation * channels,
        )

    def to(self, device: str | torch.device) -> Task:
        """Return the task with its images and labels on a device."""
        task = self._with_images(lambda x: x.to(device))
        labels = None if self.y_validation is None else self.y_validation.to(device)
        return replace(
            task,
            y_train=self.y_train.to(device),
            y_test=self.y_test.to(device),
            y_validation=labels,
        )

    def subset(self, count: int, rng: torch.Generator) -> Task:
        """Return the task with at most `count` training images, drawn at random; test images stay."""
        keep = torch.randperm(len(self.y_train), generator=rng)[:count]
        return replace(self, x_train=self.x_train[keep], y_train=self.y_train[keep])

    def at_most(self, count: int, rng: torch.Generator) -> Task:
        """Return the task with at most `count` images of each set, drawn at random."""
        kept = [torch.randperm(len(x), generator=rng)[:count].sort().values for x in self._images()]
        changed: dict[str, Any] = self._named(
            [x[keep] if count < len(x) else x for x, keep in zip(self._images(), kept, strict=True)]
        )
        labels = self._named(kept)
        for name, keep in labels.items():
            if keep is not None:
                key = name.replace("x_", "y_")
                changed[key] = getattr(self, key)[keep]
        return replace(self, **changed)

    def with_validation_for_test(self, count: int, rng: torch.Generator) -> Task:
        """Return the task with at most `count` of the images to choose by, at random, as its test images.

        The original test images are dropped, so that they cannot influence any selection.
        """
        if self.x_validation is None or self.y_validation is None:
            raise TaskError(
                self.name,
                "it has no images to choose by",
                "a folder 'val', or x_val and y_val, is needed",
                "hold out training images with held_out()",
            )
        keep = torch.randperm(len(self.y_validation), generator=rng)[:count].sort().values
        return replace(
            self,
            x_test=self.x_validation[keep],
            y_test=self.y_validation[keep],
            x_validation=None,
            y_validation=None,
        )

    def held_out(self, fraction: float, rng: torch.Generator) -> Task:
        """Return the task with its training images split, stratified by class, into training and test images.

        The original test images are dropped, so that they cannot influence any selection.
        """
        train, test = stratified_split(self.y_train, fraction, rng)
        return replace(
            self,
            x_train=self.x_train[train],
            y_train=self.y_train[train],
            x_test=self.x_train[test],
            y_test=self.y_train[test],
            x_validation=None,
            y_validation=None,
        )

    def _images(self) -> list[torch.Tensor]:
        """Return all images, each set once: images to choose by may be the test images too."""
        sets = (self.x_train, self.x_test, self.x_validation)
        distinct = {id(x): x for x in sets if x is not None}
        return [*distinct.values()]

    def _named(self, images: Sequence[torch.Tensor]) -> dict[str, torch.Tensor | None]:
        """Return the fields of images, given what became of `_images`."""
        changed = {id(old): new for old, new in zip(self._images(), images, strict=True)}
        names = ("x_train", "x_test", "x_validation")
        return {name: changed.get(id(getattr(self, name))) for name in names}

    def _with_images(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Task:
        changed: dict[str, Any] = self._named([change(x) for x in self._images()])
        return replace(self, **changed)
