"""One-cycle schedule of the learning rate.

The method: docs/explanation/sane.md, section 4.5.
"""

from __future__ import annotations

import math


def one_cycle(done: float) -> float:
    """Return the fraction of the peak rate at progress `done` in [0, 1]: warm-up for 30 %, then decay."""
    warmup, start, end = 0.3, 1 / 25, 1e-4
    if done < warmup:
        return start + (1 - start) * (1 - math.cos(math.pi * done / warmup)) / 2
    return end + (1 - end) * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2
