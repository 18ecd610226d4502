"""When the state of a training is saved."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

_SAVE_TIME_RATIO = 50  # save once training has taken this many times as long as the last save


class Saveable(Protocol):
    """A training whose state can be written."""

    step: int

    def save(self, path: Path, run_key: str) -> None:
        """Write the state atomically."""


class ZooStateSaver:
    """Saves every `every` steps, or by default so that saving takes about 2 % of the time."""

    def __init__(self, training: Saveable, path: Path, run_key: str, every: int | None) -> None:
        self._training, self._path, self._run_key, self._every = training, path, run_key, every
        self._save_seconds, self._last_save = 0.0, time.perf_counter()

    def save_if_due(self) -> None:
        """Save the state if a save is due."""
        elapsed = time.perf_counter() - self._last_save
        if (
            elapsed >= _SAVE_TIME_RATIO * self._save_seconds
            if self._every is None
            else not self._training.step % self._every
        ):
            self.save()

    def save(self) -> None:
        """Save the state now."""
        start = time.perf_counter()
        self._training.save(self._path, self._run_key)
        self._last_save = time.perf_counter()
        self._save_seconds = self._last_save - start
