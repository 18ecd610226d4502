"""One quantised weight of all uses of a stored tensor, and what it cannot hold beside them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sane_onnx.quantization.quantized import Dequantization, QuantizedWeight
from sane_onnx.tensors import StoredTensor


def combine_uses(
    stored: StoredTensor, uses: Sequence[tuple[str, Dequantization]]
) -> tuple[QuantizedWeight | None, dict[str, int]]:
    """Return the weight that these uses, by the values they make, read from a tensor.

    And how many values each use makes otherwise: with another scale than the weight's. None where a part
    of the tensor is not used, so that there is no scale for it.
    """
    uses = [use for i, use in enumerate(uses) if _differs(use, uses[:i])]
    if len(uses) == 1:
        return QuantizedWeight(stored=stored, parts=(uses[0][1].simplified(),)), {}
    first = uses[0][1]
    shape = stored.shape if first.packing is None else first.packing.shape
    parts: list[Dequantization] = []
    others: dict[str, int] = {}
    whole = [torch.full(shape, torch.nan) for _ in range(2)]
    for value, use in uses:
        try:
            grids = (
                [x.expand(shape) for x in use.grids(shape)]
                if use.packing == first.packing
                else None
            )
        except (RuntimeError, IndexError, ValueError):
            grids = None
        if grids is None:
            others[value] = stored.size
            continue
        is_new = [old.isnan() & ~new.isnan() for old, new in zip(whole, grids, strict=True)]
        is_used = ~(grids[0].isnan() | grids[1].isnan())
        is_same = (whole[0] == grids[0]) & (whole[1] == grids[1])
        if (conflicts := is_used & ~whole[0].isnan() & ~is_same).any():
            others[value] = int(conflicts.sum())
        elif is_new[0].any():
            parts.append(use)
            whole = [old.where(~x, new) for old, new, x in zip(whole, grids, is_new, strict=True)]
    if whole[0].isnan().any() or not parts:
        return None, others
    if len(parts) == 1:
        parts = [parts[0].simplified()]
    return QuantizedWeight(stored=stored, parts=tuple(parts)), others


def _differs(use: tuple[str, Dequantization], before: Sequence[tuple[str, Dequantization]]) -> bool:
    """Return whether a use dequantises in another way than those before it."""
    return use[1].simplified() not in [other.simplified() for _, other in before]
