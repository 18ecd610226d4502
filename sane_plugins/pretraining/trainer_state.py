"""Saved state of a pretraining run; a resumed run gives the same result as an uninterrupted one."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from sane_plugins.autoencoder import SANE
from sane_plugins.errors import UsageError
from sane_plugins.formats import PRETRAINING_STATE, load_artifact, require_like, save_artifact
from sane_plugins.pretraining.training_log import TrainingLog

_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}
_MAX_SAVE_FRACTION = 0.1  # of the run time may be spent on saving


@dataclass
class TrainerState:
    """Model, optimiser, log and step of a run, and the settings that a resumed run must share."""

    model: SANE
    optimizer: torch.optim.Optimizer
    log: TrainingLog
    settings: Mapping[str, Any]
    step: int = 0


class StateSaver:
    """Saves a run's state every `every` steps; 0 saves after every step, limited to a tenth of the time.

    With 0, a kill loses at most about ten times the duration of one save.
    """

    def __init__(self, path: Path, every: int) -> None:
        self._path, self._every = path, every
        self._started, self._save_seconds = time.perf_counter(), 0.0

    def save_if_due(self, run: TrainerState) -> None:
        """Save the state if a save is due."""
        now = time.perf_counter()
        is_due = self._save_seconds <= _MAX_SAVE_FRACTION * (now - self._started)
        if run.step % self._every == 0 if self._every else is_due:
            save_state(run, self._path)
            self._save_seconds += time.perf_counter() - now


def save_state(run: TrainerState, path: Path) -> None:
    """Write a run's state atomically; the inverse of `restore_state`."""
    tensors = {f"model.{key}": value for key, value in run.model.state_dict().items()}
    for index, moments in run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
    log = {"sums": run.log.sums, "count": run.log.count, "seconds": run.log.seconds}
    description = {"step": run.step, "told": run.settings, "log": log}
    save_artifact(PRETRAINING_STATE, description, tensors, path)


def restore_state(run: TrainerState, path: Path) -> None:
    """Load a saved state into a run. Raises `UsageError` if that run had other options or zoos."""

    def load(about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        _require_same_settings(path, json.loads(json.dumps(run.settings)), about["told"])
        log, step = about["log"], _count("step", about["step"])
        sums = {str(name): _number("sum", value) for name, value in log["sums"].items()}
        count, seconds = _count("count", log["count"]), _number("seconds", log["seconds"])
        model = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        moments = _moments(run, tensors)
        for key, like in run.model.state_dict().items():
            require_like(key, model[key], like)
        run.model.load_state_dict(model)
        groups = run.optimizer.state_dict()["param_groups"]
        run.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        run.log.sums, run.log.count, run.log.before = sums, count, seconds
        run.step = step

    load_artifact(PRETRAINING_STATE, path, load)


def _moments(
    run: TrainerState, tensors: Mapping[str, torch.Tensor]
) -> dict[int, dict[str, torch.Tensor]]:
    """Return the optimiser's moments by number of the parameter; raise `ValueError` where they do not fit."""
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = value
    for number, stored in moments.items():
        if not 0 <= number < len(parameters) or stored.keys() != _MOMENTS:
            raise ValueError(f"the optimiser's part {number} is not whole, or nobody's")
        for name, value in stored.items():
            like = torch.zeros(()) if name == "step" else parameters[number]
            require_like(f"optimizer.{number}.{name}", value, like)
    return moments


def _count(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"{name} is no whole number from 0 on")
    return value


def _number(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not isfinite(value):
        raise ValueError(f"{name} is no number")
    return float(value)


def _require_same_settings(
    path: Path, current: Mapping[str, Any], saved: Mapping[str, Any]
) -> None:
    if differing := sorted(k for k in {**current, **saved} if current.get(k) != saved.get(k)):
        raise UsageError(
            path,
            f"the interrupted run had another {', '.join(differing)}",
            "a run resumes with the same options and zoos",
            "repeat them, or delete the file to start anew",
        )
