"""The state of a pretraining run on disk: what a resumed run needs to equal an uninterrupted one."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sane_plugins.atomic_files import write_whole
from sane_plugins.autoencoder import SANE
from sane_plugins.errors import UsageError, ZooError
from sane_plugins.pretraining.training_log import TrainingLog

_HEADER = "sane_run"
_SHARE = 0.1


@dataclass
class TrainerState:
    """A model under training, how far it is, and what it is told to do (`told`, plain data)."""

    model: SANE
    optimizer: torch.optim.Optimizer
    log: TrainingLog
    told: Mapping[str, Any]
    step: int = 0


class StateKeeper:
    """Writes a run's state every `every` steps; 0: after every step, or as often as takes a tenth of the time.

    A kill then loses the step under way, or the steps of ten times as long as one writing takes.
    """  # noqa: E501

    def __init__(self, path: Path, every: int) -> None:
        self._path, self._every = path, every
        self._started, self._spent = time.perf_counter(), 0.0

    def keep(self, run: TrainerState) -> None:
        """Write the state if that is due."""
        now = time.perf_counter()
        is_due = self._spent <= _SHARE * (now - self._started)
        if run.step % self._every == 0 if self._every else is_due:
            save(run, self._path)
            self._spent += time.perf_counter() - now


def save(run: TrainerState, path: Path) -> None:
    """Write a run's state beside its place and rename it; the inverse of `restore`."""
    tensors = {f"model.{key}": value for key, value in run.model.state_dict().items()}
    for index, moments in run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
    log = {"sums": run.log.sums, "count": run.log.count, "seconds": run.log.seconds}
    header = {_HEADER: json.dumps({"step": run.step, "told": run.told, "log": log})}
    write_whole(path, lambda partial: save_file(tensors, partial, metadata=header))


def restore(run: TrainerState, path: Path) -> None:
    """Take up a kept run; refuse one that was told otherwise."""
    found, tensors = _read(path)
    told = json.loads(json.dumps(run.told))
    if differing := sorted(k for k in told | found["told"] if told.get(k) != found["told"].get(k)):
        raise UsageError(
            path,
            f"the interrupted run had another {', '.join(differing)}",
            "a run resumes with the same options and zoos",
            "repeat them, or delete the file to start anew",
        )
    model = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    run.model.load_state_dict(model)
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = value
    groups = run.optimizer.state_dict()["param_groups"]
    run.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    log = found["log"]
    run.log.sums, run.log.count, run.log.before = log["sums"], log["count"], log["seconds"]
    run.step = found["step"]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads(file.metadata()[_HEADER])
            if not {"step", "told", "log"} <= found.keys():
                raise KeyError("step, told or log")
            return found, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ZooError(
            path,
            f"it cannot be resumed from ({error})",
            "the state of this version's run is needed",
            "delete the file to start anew",
        ) from error
