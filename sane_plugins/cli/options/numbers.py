"""Numbers that a user types: finite, and no larger than anyone means."""

from __future__ import annotations

from math import isfinite
from typing import Any

import click


class FiniteRange(click.FloatRange):
    """A range of numbers that refuses `nan`, which compares with nothing, and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        number = super().convert(value, param, ctx)
        if not isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


SEED = click.IntRange(0, 2**40)  # times a million, and a step, it is a seed of torch
PIXELS = click.IntRange(1, 2**16)  # of a side of an image
