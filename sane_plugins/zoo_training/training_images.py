"""Training images of a zoo, and the schedule that all its networks share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sane_plugins.display import ShortRepr
from sane_plugins.tasks import Task


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TrainingImages(ShortRepr):
    """Images (N, C, H, W) and labels (N,) for training and evaluation."""

    x_train: torch.Tensor
    y_train: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor

    @classmethod
    def from_task(cls, task: Task, count: int, seed: int) -> TrainingImages:
        """Return the images of a task, with at most `count` training images drawn at random."""
        task = task.subset(count, torch.Generator().manual_seed(seed))
        return cls(
            x_train=task.x_train, y_train=task.y_train, x_test=task.x_test, y_test=task.y_test
        )

    def on(self, device: str) -> TrainingImages:
        """Return a copy on a device, with images in channels-last format."""
        return TrainingImages(
            x_train=channels_last(self.x_train.to(device)),
            y_train=self.y_train.to(device),
            x_test=channels_last(self.x_test.to(device)),
            y_test=self.y_test.to(device),
        )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Training schedule shared by a zoo's networks: epochs, batch size, checkpoints, image order."""

    epochs: int
    batch: int
    keep: tuple[int, ...]
    measured: int
    seed: int
    save_every: int | None
    device: str

    def order(self, epoch: int, count: int) -> torch.Tensor:
        """Return the image order of an epoch, the same for every network of the zoo."""
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(count, generator=rng)

    def steps(self, images: int) -> int:
        """Return the number of steps per epoch."""
        return -(-images // self.batch)


def channels_last(images: torch.Tensor) -> torch.Tensor:
    """Return images with channels-last strides, set explicitly as torch skips one-channel images."""
    n, c, h, w = images.shape
    whole = images.contiguous(memory_format=torch.channels_last)
    return whole.as_strided((n, c, h, w), (c * h * w, 1, c * w, c))
