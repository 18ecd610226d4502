"""What an epoch does to its images: their order, and the part of each that is seen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from sane_plugins.display import ShortRepr
from sane_plugins.zoo_training.training_images import channels_last

_LEAST_SIDE = 0.7  # share of an image's side that is seen, at least


@dataclass(frozen=True, eq=False, repr=False)
class EpochPlan(ShortRepr):
    """The order (N,) of an epoch's images, and the affine maps (N, 2, 3) that cut and mirror them, if any.

    Drawn on the CPU, all at once, and then moved: a step on a GPU waits for no number of the CPU.
    """

    order: torch.Tensor
    cuts: torch.Tensor | None

    @classmethod
    def draw(
        cls, count: int, *, augment: bool, rng: torch.Generator, device: str | torch.device
    ) -> EpochPlan:
        """Draw the plan of an epoch of `count` images."""
        order = torch.randperm(count, generator=rng)
        cuts = _draw_cuts(count, rng).to(device) if augment else None
        return cls(order.to(device), cuts)

    def images(self, x: torch.Tensor, rows: torch.Tensor, part: slice, size: int) -> torch.Tensor:
        """Return the images `rows` of x (N, C, H, W), as the epoch's `part` shows them at `size` pixels."""
        chosen = x[rows].float()
        if self.cuts is None:
            return resized(chosen, size)
        side = size or chosen.shape[-1]
        shape = [len(chosen), chosen.shape[1], side, side]
        grid = F.affine_grid(self.cuts[part], shape, align_corners=False)
        cut = F.grid_sample(chosen, grid, padding_mode="reflection", align_corners=False)
        return channels_last(cut)


def resized(images: torch.Tensor, size: int) -> torch.Tensor:
    """Return images (N, C, H, W) as floats with sides of `size` pixels, or as they are for 0."""
    images = images.float()
    if size and images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
    return channels_last(images)


def _draw_cuts(count: int, rng: torch.Generator) -> torch.Tensor:
    """Return affine maps (N, 2, 3): a part of 0.7 to 1 of each side, anywhere, half of them mirrored."""
    side = _LEAST_SIDE + (1 - _LEAST_SIDE) * torch.rand(count, 2, generator=rng)
    place = (2 * torch.rand(count, 2, generator=rng) - 1) * (1 - side)
    side[torch.rand(count, generator=rng) < 0.5, 0] *= -1
    return torch.cat((torch.diag_embed(side), place[..., None]), 2)
