"""Position tables on another grid, and patch kernels of another size.

The method: docs/explanation/sane.md, section 11.4.
"""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate


def resize_grid(values: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Return values (h, w, D) on another grid (height, width), bicubically interpolated."""
    if tuple(values.shape[:2]) == tuple(grid):
        return values
    image = values.permute(2, 0, 1)[None].float()
    resized = interpolate(image, size=grid, mode="bicubic", antialias=True, align_corners=False)
    back: torch.Tensor = resized[0].permute(1, 2, 0).to(values)
    return back


def resize_kernels(kernels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return patch kernels (D, C, h, w) of another size, with the same products with resized patches.

    The pseudo-inverse of the resize: Beyer et al., "FlexiViT", CVPR 2023, section 3.4.
    """
    if tuple(kernels.shape[2:]) == tuple(size):
        return kernels
    pixels = kernels.shape[2] * kernels.shape[3]
    units = torch.eye(pixels, dtype=torch.float64).view(pixels, 1, *kernels.shape[2:])
    resized = interpolate(units, size=size, mode="bilinear", antialias=True, align_corners=False)
    matrix = resized.flatten(1)  # (pixels of the source, pixels of the target)
    inverse = torch.linalg.pinv(matrix).to(kernels)
    resized_kernels: torch.Tensor = (kernels.flatten(2) @ inverse.T).unflatten(2, size)
    return resized_kernels


def resize_channels(kernels: torch.Tensor, channels: int) -> torch.Tensor:
    """Return kernels (D, C, h, w) for another number of image channels: summed, or repeated and divided."""
    count = kernels.shape[1]
    if channels == count:
        return kernels
    if channels == 1:
        return kernels.sum(1, keepdim=True)
    places = torch.arange(channels) % count
    copies = torch.bincount(places, minlength=count).clamp_min(1)
    return kernels[:, places] / copies[places].view(1, -1, 1, 1)


def sine_cosine(grid: tuple[int, int], width: int) -> torch.Tensor:
    """Return positions (height, width, D) of a grid: a quarter each of x and y, sine and cosine."""
    quarter = max(width // 4, 1)
    rates = 10000.0 ** (-torch.arange(quarter) / quarter)
    rows = torch.arange(grid[0])[:, None] * rates
    columns = torch.arange(grid[1])[:, None] * rates
    y = rows[:, None].expand(-1, grid[1], -1)
    x = columns[None].expand(grid[0], -1, -1)
    table = torch.cat((x.sin(), x.cos(), y.sin(), y.cos()), -1)
    padded = torch.zeros(*grid, width)
    padded[..., : table.shape[-1]] = table[..., :width]
    return padded
