"""The numerical rank of what changed in a matrix: few for a merged LoRA, many for training all of it.

The method: docs/explanation/sane.md, section 21.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.utils.extmath import randomized_svd

_EXACT = 1024  # sides up to this long are decomposed exactly
_SKETCH = 160  # singular values that are computed of longer ones
_MOST = 0.9  # of the change's energy that `main_rank` holds


@dataclass(frozen=True, kw_only=True)
class ChangeRank:
    """How many directions a change has.

    `rank`: so many hold all of its energy but what rounding explains, None where that are more than were
    computed. `main_rank` hold 90 % of the energy. `full` is the shorter side of the matrix.
    """

    rank: int | None
    main_rank: int | None
    full: int

    @property
    def is_low(self) -> bool:
        """Return whether the change needs at most an eighth of the directions that the matrix has."""
        return self.rank is not None and 8 * self.rank <= self.full


def change_rank(change: torch.Tensor, rounding: float) -> ChangeRank:
    """Return the rank of a change (n, m); `rounding` is the energy that rounding may have added."""
    full = min(change.shape)
    if full <= _EXACT:
        gram = (
            change.T @ change if change.shape[0] > change.shape[1] else change @ change.T
        ).double()
        energies = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
    else:
        values = randomized_svd(change.numpy(), n_components=_SKETCH, n_iter=2, random_state=0)[1]
        energies = torch.from_numpy(values).double() ** 2
    total = float((change.double() ** 2).sum())
    remaining = total - energies.cumsum(0)
    return ChangeRank(
        rank=_first(remaining <= 4 * rounding + 1e-6 * total),
        main_rank=_first(remaining <= (1 - _MOST) * total),
        full=full,
    )


def _first(reached: torch.Tensor) -> int | None:
    return int(reached.int().argmax()) + 1 if bool(reached.any()) else None
