"""Ridge regression of a layer's outputs on its inputs, around weights that it has already.

The method: docs/explanation/sane.md, section 16.
"""

from __future__ import annotations

import torch

# Where less than this share of the mean variance is left, a feature says nothing.
_LEAST_VARIANCE = 1e-7


@torch.no_grad()
def fit_around(
    inputs: torch.Tensor, outputs: torch.Tensor, weight: torch.Tensor, penalty: float
) -> torch.Tensor:
    """Return weights (G, F, O) that map inputs (S, G, F) to outputs (S, G, O), near given ones (G, F, O).

    G groups are fitted each on its own; `inputs` and `outputs` have mean 0 over the S samples. Each output's
    given weights are first scaled by the non-negative factor that fits best. `penalty` is relative to the
    mean diagonal of a group's Gram matrix. An output without variance keeps the weights given.
    """
    x, y = inputs.transpose(0, 1), outputs.transpose(0, 1)
    given = x @ weight
    factor = (given * y).sum(1, keepdim=True) / given.square().sum(1, keepdim=True)
    factor = factor.nan_to_num(0.0, 0.0, 0.0).clamp_min_(0.0)
    start = weight * factor
    fitted = start + ridge_step(x, y - given * factor, penalty)
    variance = y.square().mean(1, keepdim=True)
    says = variance > _LEAST_VARIANCE * variance.mean()
    return torch.where(says & fitted.isfinite().all(1, keepdim=True), fitted, weight)


def ridge_step(x: torch.Tensor, y: torch.Tensor, penalty: float) -> torch.Tensor:
    """Return (X'X + l I)^-1 X'Y (G, F, O) for x (G, S, F) and y (G, S, O), l = penalty times mean diag X'X.

    Where features outnumber samples the same is X' (X X' + l I)^-1 Y.
    """
    samples, width = x.shape[1:]
    is_dual = width > samples
    gram = x @ x.mT if is_dual else x.mT @ x
    diagonal = gram.diagonal(dim1=1, dim2=2)
    trace = diagonal.sum(1, keepdim=True) / width
    # A group of constant inputs has a Gram matrix of 0, which any positive number makes solvable.
    diagonal += (penalty * trace).clamp_min(torch.finfo(x.dtype).tiny ** 0.5)
    factor, _ = torch.linalg.cholesky_ex(gram)
    if is_dual:
        return x.mT @ torch.cholesky_solve(y, factor)
    return torch.cholesky_solve(x.mT @ y, factor)
