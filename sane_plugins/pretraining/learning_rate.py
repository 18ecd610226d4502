"""One-cycle schedule of the learning rate.

The method: docs/explanation/sane.md, section 4.5.
"""

from __future__ import annotations

import math


def one_cycle(done: float) -> float:
    """Return the share of the peak rate after a share `done` of the steps: up over 30 %, then down."""
    up, start, end = 0.3, 1 / 25, 1e-4
    if done < up:
        return start + (1 - start) * (1 - math.cos(math.pi * done / up)) / 2
    return end + (1 - end) * (1 + math.cos(math.pi * (done - up) / (1 - up))) / 2
