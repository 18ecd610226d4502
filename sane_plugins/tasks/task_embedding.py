"""A task as a few numbers: which tasks are alike, whatever their image size, colours and classes.

After the dataset embeddings that condition D2NWG ("Diffusion-based Neural Network Weights Generation",
2024), without a network that was trained on images: all that is measured here has a closed form.
The method: docs/explanation/sane.md, section 8.4.
"""

from __future__ import annotations

import torch
from torch.nn.functional import avg_pool2d, conv2d, interpolate, one_hot, pad

from sane_plugins.tasks.task import Task

SIZE = 58
_IMAGES = 2000
_GRID = 16
_DETAIL = 8
_SPECTRUM = 16
_MOST = 1.68  # the 48th direction, of 64
_DIRECTIONS = 8
_FILTERS = 48
_RIDGE = 0.1
_EPS = 1e-6


@torch.no_grad()
def describe(task: Task) -> torch.Tensor:
    """Return the descriptor (SIZE,) float32 of a task, from at most 2,000 of its training images.

    Images are made grey, reduced to the detail of 8 x 8 pixels, and standardised as a whole, so that neither
    their size nor their brightness counts. The parts: how fast the spectrum of the pixels falls (16), the
    energy of the mean image and of its regions (10), edges by direction and by scale (15), the shape of the
    values (4), how the classes lie apart in pixels and in random convolutional features (12), and their
    number (1). Each is roughly of the size of 1.
    """
    images, labels = _sample(task)
    grid = _standard(_grid(images))
    flat = grid.flatten(1)
    parts = [
        _spectrum(flat),
        _mean_image(grid),
        _directions(grid),
        _scales(grid),
        _values(flat),
        _classes(flat, labels),
        _classes(_features(grid), labels),
        torch.tensor([float(len(task.classes))]).log() / 2,
    ]
    return torch.cat([part.float().cpu() for part in parts]).nan_to_num(0.0, 0.0, 0.0).clamp(-4, 4)


def nearness(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return how alike two tasks of descriptors (SIZE,) are: 1 for the same, towards 0 for unlike ones."""
    return float(torch.exp(-(a - b).square().sum() / 4))


def _sample(task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images spread evenly over the training images, so that their order does not decide."""
    count = len(task.y_train)
    rng = torch.Generator().manual_seed(0)
    keep = torch.randperm(count, generator=rng)[:_IMAGES].sort().values
    keep = keep.to(task.y_train.device)
    return task.x_train[keep].cpu(), task.y_train[keep].cpu()


def _grid(images: torch.Tensor) -> torch.Tensor:
    """Return images (N, C, H, W) as (N, 1, 16, 16), as fine as 8 x 8: small images have no finer detail."""
    coarse = _resized(images.float().mean(1, keepdim=True), _DETAIL)
    return _resized(coarse, _GRID)


def _resized(images: torch.Tensor, size: int) -> torch.Tensor:
    found: torch.Tensor = interpolate(
        images, (size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return found


def _standard(grid: torch.Tensor) -> torch.Tensor:
    return (grid - grid.mean()) / grid.std(correction=0).clamp_min(_EPS)


def _spectrum(flat: torch.Tensor) -> torch.Tensor:
    """Return the log share of the variance beyond the first 1 to 48 principal directions."""
    x = flat - flat.mean(0)
    values = torch.linalg.eigvalsh((x.T @ x / len(x)).double()).flip(0).clamp_min(0)
    left = 1 - values.cumsum(0) / values.sum().clamp_min(_EPS)
    ranks = torch.logspace(0, _MOST, _SPECTRUM).round().long() - 1
    found: torch.Tensor = (left[ranks].clamp_min(1e-4).log10() + 1) / 2
    return found


def _mean_image(grid: torch.Tensor) -> torch.Tensor:
    """Return the mean image's energy, and its mean value in nine regions."""
    mean = grid.mean(0, keepdim=True)
    return torch.cat([mean.square().mean()[None], _resized(mean, 3).flatten() / 2])


def _directions(grid: torch.Tensor) -> torch.Tensor:
    """Return the share of the gradients' strength by direction, doubled angles apart, and their strength."""
    x, y = _gradients(grid)
    strength = (x.square() + y.square()).sqrt()
    turn = torch.atan2(y, x).remainder(torch.pi) / torch.pi * _DIRECTIONS
    which = turn.round().long().remainder(_DIRECTIONS).flatten()
    share = torch.zeros(_DIRECTIONS).index_add_(0, which, strength.flatten())
    share = share / share.sum().clamp_min(_EPS)
    return torch.cat([share * _DIRECTIONS - 1, strength.mean()[None] - 0.5, _flat(strength)])


def _flat(strength: torch.Tensor) -> torch.Tensor:
    """Return the share of places without an edge: drawings have many, photographs few."""
    return (strength < 0.05).float().mean()[None]


def _gradients(grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    inner = pad(grid, (1, 1, 1, 1), mode="replicate")
    x = (inner[..., 1:-1, 2:] - inner[..., 1:-1, :-2]) / 2
    y = (inner[..., 2:, 1:-1] - inner[..., :-2, 1:-1]) / 2
    return x, y


def _scales(grid: torch.Tensor) -> torch.Tensor:
    """Return the share of the variance at each scale of a pyramid, finest first, and its fall."""
    levels, x = [], grid
    for _ in range(4):
        coarse = avg_pool2d(x, 2)
        levels.append((x - interpolate(coarse, scale_factor=2.0)).square().mean())
        x = coarse
    found = torch.stack([*levels, x.square().mean()])
    return (found / found.sum().clamp_min(_EPS)).sqrt() - 0.4


def _values(flat: torch.Tensor) -> torch.Tensor:
    """Return skewness and kurtosis of the values, and how brightness and contrast differ between images."""
    skew, peak = flat.pow(3).mean() / 2, flat.pow(4).mean().clamp_min(_EPS).log() / 2
    return torch.stack([skew, peak - 0.5, flat.mean(1).std(), flat.std(1).std()])


def _features(grid: torch.Tensor) -> torch.Tensor:
    """Return random convolutional features (N, 9 * filters), always the same filters."""
    rng = torch.Generator().manual_seed(0)
    filters = torch.randn(_FILTERS, 1, 5, 5, generator=rng)
    filters = filters - filters.mean((2, 3), keepdim=True)
    found = conv2d(
        grid, filters / filters.flatten(1).norm(dim=1)[:, None, None, None], padding=2
    ).relu()
    return avg_pool2d(found, 6, stride=5).flatten(1)


def _classes(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return how the classes lie apart in features (N, D): six numbers.

    The share of the variance between classes, the least, mean and deviation of the distances of class
    means relative to the spread within, and the accuracy of ridge and of nearest means on the other half.
    """
    kinds, which = labels.unique(return_inverse=True)
    hot = one_hot(which, len(kinds)).to(x)
    x = (x - x.mean(0)) / x.std(correction=0).clamp_min(_EPS)
    means = (hot.T @ x) / hot.sum(0)[:, None]
    within = (x - means[which]).square().sum(1).mean().clamp_min(_EPS)
    between = means[which].square().sum(1).mean()
    apart = torch.pdist(means) / within.sqrt()
    split = torch.stack([apart.min(), apart.mean(), apart.std(correction=0)])
    return torch.cat([(between / (between + within))[None], split, _accuracies(x, hot, which)])


def _accuracies(x: torch.Tensor, hot: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Return the accuracies of ridge and of nearest class means, fitted on every other image."""
    fit, held = slice(0, None, 2), slice(1, None, 2)
    inner = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    gram = inner[fit].T @ inner[fit] / len(inner[fit])
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram, inner[fit].T @ hot[fit].double() / len(inner[fit]))
    means = (hot[fit].T @ x[fit]) / hot[fit].sum(0).clamp_min(1)[:, None]
    nearest = torch.cdist(x[held], means).argmin(1)
    answers = ((inner[held] @ weight).argmax(1), nearest)
    return torch.stack([(answer == which[held]).float().mean() for answer in answers])
