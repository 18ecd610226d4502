"""What the stages of real_forms.py share: places, half precision, and lines that tell how far they are."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from sane_plugins.progress import Progress

ROOT = Path(__file__).parents[2]
RECIPE = Path(__file__).parent / "recipes" / "real_forms.json"
UNSEEN = 0.2
"""Share of the real forms that pretraining does not see."""


def in_half(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors in half precision, but for those that it cannot hold."""
    found = {}
    for key, tensor in state.items():
        half = tensor.half() if tensor.is_floating_point() else tensor
        found[key] = half if bool(half.isfinite().all()) else tensor
    return found


class Lines:
    """Prints a line every few seconds, and every announcement."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, event: Progress) -> None:
        if event.is_announcement:
            say(event.job)
        elif time.monotonic() - self._last >= 10 or event.done == event.total:
            self._last = time.monotonic()
            say(f"{event.job} {event.done}/{event.total} {event.note}")


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)
