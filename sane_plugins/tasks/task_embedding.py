"""Task embedding: a small descriptor comparable across image sizes, colours and classes.

Inspired by the dataset embeddings that condition D2NWG ("Diffusion-based Neural Network Weights Generation",
2024), but without a network trained on images: all features have a closed form.
The method: docs/explanation/sane.md, section 8.4.
"""

from __future__ import annotations

import torch
from torch.nn.functional import avg_pool2d, conv2d, interpolate, one_hot, pad

from sane_plugins.tasks.task import Task

SIZE = 58
_MAX_IMAGES = 2000
_GRID_SIZE = 16
_DETAIL_SIZE = 8
_SPECTRUM_SIZE = 16
_MAX_LOG10_RANK = 1.68  # log10 of the 48th rank, of 64
_DIRECTIONS = 8
_FILTERS = 48
_RIDGE = 0.1
_EPS = 1e-6


@torch.no_grad()
def describe(task: Task) -> torch.Tensor:
    """Return the descriptor (SIZE,) float32 of a task, from at most 2,000 of its training images.

    Images are converted to grey, reduced to a resolution of 8 x 8 pixels, and standardised jointly, so that
    size and brightness do not matter. The parts: decay of the pixel spectrum (16), energy of the mean image
    and its regions (10), edges by direction and by scale (15), shape of the value distribution (4), class
    separation in pixels and in random convolutional features (12), and the number of classes (1). Each is
    of order 1.
    """
    images, labels = _sample(task)
    grid = _standardize(_grid(images))
    flat = grid.flatten(1)
    parts = [
        _spectrum(flat),
        _mean_image(grid),
        _directions(grid),
        _scales(grid),
        _value_statistics(flat),
        _class_separation(flat, labels),
        _class_separation(_features(grid), labels),
        torch.tensor([float(len(task.classes))]).log() / 2,
    ]
    return torch.cat([part.float().cpu() for part in parts]).nan_to_num(0.0, 0.0, 0.0).clamp(-4, 4)


def nearness(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the similarity in (0, 1] of two task descriptors (SIZE,); 1 if identical."""
    return float(torch.exp(-(a - b).square().sum() / 4))


def _sample(task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a fixed random sample of the training images, so that their order does not matter."""
    count = len(task.y_train)
    rng = torch.Generator().manual_seed(0)
    keep = torch.randperm(count, generator=rng)[:_MAX_IMAGES].sort().values
    keep = keep.to(task.y_train.device)
    return task.x_train[keep].cpu(), task.y_train[keep].cpu()


def _grid(images: torch.Tensor) -> torch.Tensor:
    """Return images (N, C, H, W) as (N, 1, 16, 16) with the detail of 8 x 8, as small images have."""
    coarse = _resize(images.float().mean(1, keepdim=True), _DETAIL_SIZE)
    return _resize(coarse, _GRID_SIZE)


def _resize(images: torch.Tensor, size: int) -> torch.Tensor:
    resized: torch.Tensor = interpolate(
        images, (size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return resized


def _standardize(grid: torch.Tensor) -> torch.Tensor:
    return (grid - grid.mean()) / grid.std(correction=0).clamp_min(_EPS)


def _spectrum(flat: torch.Tensor) -> torch.Tensor:
    """Return the log fraction of variance unexplained by the first 1 to 48 principal components."""
    x = flat - flat.mean(0)
    values = torch.linalg.eigvalsh((x.T @ x / len(x)).double()).flip(0).clamp_min(0)
    unexplained = 1 - values.cumsum(0) / values.sum().clamp_min(_EPS)
    ranks = torch.logspace(0, _MAX_LOG10_RANK, _SPECTRUM_SIZE).round().long() - 1
    spectrum: torch.Tensor = (unexplained[ranks].clamp_min(1e-4).log10() + 1) / 2
    return spectrum


def _mean_image(grid: torch.Tensor) -> torch.Tensor:
    """Return the mean image's energy, and its mean value in nine regions."""
    mean = grid.mean(0, keepdim=True)
    return torch.cat([mean.square().mean()[None], _resize(mean, 3).flatten() / 2])


def _directions(grid: torch.Tensor) -> torch.Tensor:
    """Return the gradient magnitude by orientation, its mean, and the fraction of flat pixels."""
    x, y = _gradients(grid)
    strength = (x.square() + y.square()).sqrt()
    angle = torch.atan2(y, x).remainder(torch.pi) / torch.pi * _DIRECTIONS
    bins = angle.round().long().remainder(_DIRECTIONS).flatten()
    share = torch.zeros(_DIRECTIONS).index_add_(0, bins, strength.flatten())
    share = share / share.sum().clamp_min(_EPS)
    return torch.cat(
        [share * _DIRECTIONS - 1, strength.mean()[None] - 0.5, _flat_fraction(strength)]
    )


def _flat_fraction(strength: torch.Tensor) -> torch.Tensor:
    """Return the fraction of pixels without an edge: drawings have many, photographs few."""
    return (strength < 0.05).float().mean()[None]


def _gradients(grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    inner = pad(grid, (1, 1, 1, 1), mode="replicate")
    x = (inner[..., 1:-1, 2:] - inner[..., 1:-1, :-2]) / 2
    y = (inner[..., 2:, 1:-1] - inner[..., :-2, 1:-1]) / 2
    return x, y


def _scales(grid: torch.Tensor) -> torch.Tensor:
    """Return the root energy fraction of each pyramid level, finest first, and of the residual."""
    levels, x = [], grid
    for _ in range(4):
        coarse = avg_pool2d(x, 2)
        levels.append((x - interpolate(coarse, scale_factor=2.0)).square().mean())
        x = coarse
    energies = torch.stack([*levels, x.square().mean()])
    return (energies / energies.sum().clamp_min(_EPS)).sqrt() - 0.4


def _value_statistics(flat: torch.Tensor) -> torch.Tensor:
    """Return skewness and kurtosis of the values, and variation of brightness and contrast."""
    skew, peak = flat.pow(3).mean() / 2, flat.pow(4).mean().clamp_min(_EPS).log() / 2
    return torch.stack([skew, peak - 0.5, flat.mean(1).std(), flat.std(1).std()])


def _features(grid: torch.Tensor) -> torch.Tensor:
    """Return features (N, 9 * filters) from fixed random convolutional filters."""
    rng = torch.Generator().manual_seed(0)
    filters = torch.randn(_FILTERS, 1, 5, 5, generator=rng)
    filters = filters - filters.mean((2, 3), keepdim=True)
    maps = conv2d(
        grid, filters / filters.flatten(1).norm(dim=1)[:, None, None, None], padding=2
    ).relu()
    return avg_pool2d(maps, 6, stride=5).flatten(1)


def _class_separation(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return six measures of class separation in features (N, D).

    The between-class fraction of variance; minimum, mean and deviation of distances between class means
    relative to the within-class spread; and the held-out accuracies of ridge and nearest-mean classifiers.
    """
    classes, which = labels.unique(return_inverse=True)
    hot = one_hot(which, len(classes)).to(x)
    x = (x - x.mean(0)) / x.std(correction=0).clamp_min(_EPS)
    means = (hot.T @ x) / hot.sum(0)[:, None]
    within = (x - means[which]).square().sum(1).mean().clamp_min(_EPS)
    between = means[which].square().sum(1).mean()
    distances = torch.pdist(means) / within.sqrt()
    distance_statistics = torch.stack(
        [distances.min(), distances.mean(), distances.std(correction=0)]
    )
    return torch.cat(
        [(between / (between + within))[None], distance_statistics, _accuracies(x, hot, which)]
    )


def _accuracies(x: torch.Tensor, hot: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Return accuracies of ridge and nearest-mean classifiers, fitted on every other image."""
    fit, held_out = slice(0, None, 2), slice(1, None, 2)
    inner = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    gram = inner[fit].T @ inner[fit] / len(inner[fit])
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram, inner[fit].T @ hot[fit].double() / len(inner[fit]))
    means = (hot[fit].T @ x[fit]) / hot[fit].sum(0).clamp_min(1)[:, None]
    nearest = torch.cdist(x[held_out], means).argmin(1)
    answers = ((inner[held_out] @ weight).argmax(1), nearest)
    return torch.stack([(answer == which[held_out]).float().mean() for answer in answers])
