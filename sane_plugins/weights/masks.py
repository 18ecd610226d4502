"""Constants that hold infinities on purpose, as attention masks do: they are no weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from sane_plugins.weights.layers import Layer
from sane_plugins.weights.rounding import widened
from sane_plugins.weights.token_layout import find_slots

MAX_VALUE = torch.finfo(torch.float32).max / 2
_MANY = 2  # infinities among equal values: a lone one may be an accident
MASK_REASON = "a constant with infinite values, as attention masks have: no weight"


def mask_candidates(layers: Iterable[Layer]) -> Iterator[str]:
    """Yield the tensors that may be masks by their place: alone in their slot, a vector in its layer too.

    What has a bias, and the vectors of a norm, are weights whatever they hold.
    """
    layers = tuple(layers)
    alone = {layer.params[0].key for layer in layers if len(layer.params) == 1}
    for slot in find_slots(layers):
        if len(slot.params) == 1 and (len(slot.weight.shape) > 1 or slot.weight.key in alone):
            yield slot.weight.key


def is_mask(tensor: torch.Tensor) -> bool:
    """Return whether infinities (or values beyond use) mask places: the rest is one value, or a triangle."""
    values, usable = _usable(tensor)
    rest, masked = values[usable], int((~usable).sum())
    if not masked or not rest.numel() or bool(values.isnan().any()):
        return False
    if bool(rest.min() == rest.max()) and masked >= _MANY:
        return True
    if values.dim() < 2:
        return False
    places = torch.ones_like(usable)
    triangles = places.triu(1), places.tril(-1)
    return any(bool((triangle == ~usable).all()) for triangle in triangles)


def count_unusable(tensor: torch.Tensor) -> int:
    """Return how many values are NaN, infinite, or too large to be computed with."""
    _, usable = _usable(tensor)
    return usable.numel() - int(usable.sum())


def _usable(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the values, and which of them can be computed with."""
    values = widened(tensor)
    return values, values.abs() <= min(MAX_VALUE, torch.finfo(values.dtype).max)
