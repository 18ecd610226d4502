"""Ridge regression of classes on features, judged by leave-one-out predictions in closed form.

The method: docs/explanation/sane.md, section 6.6.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import copysign, inf, isfinite

import torch
from torch.nn.functional import cross_entropy, one_hot

from sane_plugins.display import ShortRepr

_PENALTIES = tuple(10 ** (k / 2) for k in range(-8, 3))
_LOGIT_FACTORS = tuple(2 ** (k / 2) for k in range(13))
# A leverage of 1 says that the image alone decides its own prediction: nothing is left to divide by.
_LEAST_SLACK = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LeftOutLosses(ShortRepr):
    """How N images are classified, each by what was not fitted to it.

    `loo_loss_per_image` (N,) holds the cross-entropies, in nats; `loo_accuracy` is the share of images that
    are told right.
    """

    loo_loss_per_image: torch.Tensor
    loo_accuracy: float

    @property
    def loo_loss(self) -> float:
        """Return the mean leave-one-out cross-entropy, in nats."""
        return float(self.loo_loss_per_image.mean())


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RidgeFit(LeftOutLosses):
    """A linear classifier fitted to N images of C classes; its losses are those of fits to all other images.

    `weight` (C, F) and `bias` (C,) give logits: `factor` is in them already. `penalty` is relative to the
    mean variance of the features.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    penalty: float
    factor: float


def lead(one: LeftOutLosses, other: LeftOutLosses) -> float:
    """Return by how many standard errors the one's mean loss is below the other's of the same images.

    Infinite where only one's losses are, or where all differ by the same; 0 where there is nothing to tell.
    """
    gains = (other.loo_loss_per_image - one.loo_loss_per_image).nan_to_num(0.0)
    mean = float(gains.mean())
    if len(gains) < 2 or mean == 0.0:
        return 0.0
    error = float(gains.std()) / len(gains) ** 0.5
    return mean / error if error > 0.0 and isfinite(mean) else copysign(inf, mean)


@torch.no_grad()
def fit_ridge(features: torch.Tensor, labels: torch.Tensor, classes: int) -> RidgeFit:
    """Regress the one-hot labels (N,) on features (N, F), computed in double precision.

    A regression's outputs lie near 0 and 1; a factor makes logits of them. Penalty and factor are those of
    least leave-one-out cross-entropy. Of features that are not all finite nothing is learnt: weight and
    bias are then 0, and every loss is infinite.
    """
    features = features.double()
    targets = one_hot(labels, classes).to(features)
    if not features.isfinite().all():
        return RidgeFit(
            weight=features.new_zeros(classes, features.shape[1]),
            bias=features.new_zeros(classes),
            penalty=_PENALTIES[-1],
            factor=1.0,
            loo_loss_per_image=features.new_full((len(labels),), inf),
            loo_accuracy=0.0,
        )
    solver = _RidgePath(features, targets)
    best = (inf, _PENALTIES[-1], 1.0)
    for penalty in _PENALTIES:
        left_out = solver.leave_one_out(penalty)
        losses = (float(cross_entropy(f * left_out, labels)) for f in _LOGIT_FACTORS)
        best = min(best, *((x, penalty, f) for x, f in zip(losses, _LOGIT_FACTORS, strict=True)))
    _, penalty, factor = best
    weight, bias = solver.fit(penalty)
    left_out = factor * solver.leave_one_out(penalty)
    return RidgeFit(
        weight=factor * weight,
        bias=factor * bias,
        penalty=penalty,
        factor=factor,
        loo_loss_per_image=cross_entropy(left_out, labels, reduction="none"),
        loo_accuracy=float((left_out.argmax(1) == labels).double().mean()),
    )


class _RidgePath:
    """The solutions for all penalties, from one eigendecomposition of the smaller Gram matrix.

    With centred features X = U S V', the fit is U S^2 / (S^2 + l) U'Y. Where images outnumber features V
    and S come from X'X, else U and S from X X'.
    """

    def __init__(self, features: torch.Tensor, targets: torch.Tensor) -> None:
        self._targets = targets
        self._mean, self._target_mean = features.mean(0), targets.mean(0)
        self._x, y = features - self._mean, targets - self._target_mean
        images, width = self._x.shape
        self._unit = float(self._x.square().sum()) / width
        self._is_dual = width > images
        gram = self._x @ self._x.T if self._is_dual else self._x.T @ self._x
        values, vectors = torch.linalg.eigh(gram)
        self._values, self._vectors = values.clamp_min(0.0), vectors
        # (N, rank) with columns U S, and (rank, C) as U'Y (dual) or S U'Y (primal).
        self._scores = vectors * self._values.sqrt() if self._is_dual else self._x @ vectors
        self._projected = vectors.T @ (y if self._is_dual else self._x.T @ y)

    def fit(self, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight (C, F) and bias (C,) for a penalty relative to the features' mean variance."""
        solution = self._vectors @ (self._projected / self._shifted(penalty)[:, None])
        weight = (self._x.T @ solution if self._is_dual else solution).T
        return weight, self._target_mean - weight @ self._mean

    def leave_one_out(self, penalty: float) -> torch.Tensor:
        """Return for each image (N, C) what the fit to all others predicts.

        A linear smoother with hat matrix H leaves y - (y - Hy) / (1 - diag H). The mean is fitted as well,
        without penalty, and has a leverage of 1 / N.
        """
        shifted = self._shifted(penalty)
        coefficients = self._projected / shifted[:, None]
        if self._is_dual:
            coefficients = coefficients * self._values.sqrt()[:, None]
        fitted = self._target_mean + self._scores @ coefficients
        leverage = self._scores.square() @ (1 / shifted) + 1 / len(self._targets)
        slack = (1 - leverage).clamp_min(_LEAST_SLACK)[:, None]
        left_out: torch.Tensor = self._targets - (self._targets - fitted) / slack
        return left_out

    def _shifted(self, penalty: float) -> torch.Tensor:
        shifted: torch.Tensor = self._values + (penalty * self._unit + 1e-9 * len(self._targets))
        return shifted
