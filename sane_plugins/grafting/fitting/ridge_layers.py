"""Ridge regression of a layer's outputs on its inputs, around weights that it has already.

The method: docs/explanation/sane.md, section 16.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf

import torch

# Where less than this share of the mean variance is left, a feature says nothing.
_LEAST_VARIANCE = 1e-7


@torch.no_grad()
def fit_around(
    inputs: torch.Tensor,
    outputs: torch.Tensor,
    weight: torch.Tensor,
    penalties: Sequence[float],
) -> torch.Tensor:
    """Return weights (G, F, O) that map inputs (S, G, F) to outputs (S, G, O), near given ones (G, F, O).

    G groups are fitted each on its own; `inputs` and `outputs` have mean 0 over the S samples. Each output's
    given weights are first scaled by the non-negative factor that fits best. Penalties are relative to the
    mean diagonal of a group's Gram matrix: of several the one is taken whose fit to the first four fifths
    of the samples has the least error on the others. An output without variance keeps the weights given.
    """
    x, y = inputs.transpose(0, 1), outputs.transpose(0, 1)
    given = x @ weight
    factor = (given * y).sum(1, keepdim=True) / given.square().sum(1, keepdim=True)
    factor = factor.nan_to_num(0.0, 0.0, 0.0).clamp_min_(0.0)
    left = y - given * factor
    penalty = penalties[0] if len(penalties) == 1 else _choose(x, left, penalties)
    fitted = weight * factor + next(ridge_steps(x, left, [penalty]))
    variance = y.square().mean(1, keepdim=True)
    says = variance > _LEAST_VARIANCE * variance.mean()
    return torch.where(says & fitted.isfinite().all(1, keepdim=True), fitted, weight)


def ridge_steps(
    x: torch.Tensor, y: torch.Tensor, penalties: Sequence[float]
) -> Iterator[torch.Tensor]:
    """Yield (X'X + l I)^-1 X'Y (G, F, O) for x (G, S, F) and y (G, S, O), l = penalty times mean diag X'X.

    Where features outnumber samples the same is X' (X X' + l I)^-1 Y.
    """
    samples, width = x.shape[1:]
    is_dual = width > samples
    gram = x @ x.mT if is_dual else x.mT @ x
    right = y if is_dual else x.mT @ y
    diagonal = gram.diagonal(dim1=1, dim2=2).clone()
    trace = diagonal.sum(1, keepdim=True) / width
    for penalty in penalties:
        # A group of constant inputs has a Gram matrix of 0, which any positive number makes solvable.
        ridge = (penalty * trace).clamp_min(torch.finfo(x.dtype).tiny ** 0.5)
        gram.diagonal(dim1=1, dim2=2).copy_(diagonal + ridge)
        solved = torch.cholesky_solve(right, torch.linalg.cholesky_ex(gram).L)
        yield x.mT @ solved if is_dual else solved


def _choose(x: torch.Tensor, y: torch.Tensor, penalties: Sequence[float]) -> float:
    """Return the penalty of least error on the last fifth of the samples, fitted to the others."""
    split = x.shape[1] * 4 // 5
    errors = [
        float((y[:, split:] - x[:, split:] @ step).square().sum().nan_to_num(inf))
        for step in ridge_steps(x[:, :split], y[:, :split], penalties)
    ]
    return penalties[errors.index(min(errors))]
