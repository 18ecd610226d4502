"""Training of a recipe's networks in this process, or side by side in processes of one thread each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from sane_plugins.architectures import Trust
from sane_plugins.atomic_files import write_whole
from sane_plugins.formats import ZOO_TRAINING_STATE, read_description
from sane_plugins.runtime import threads
from sane_plugins.zoo_training.network_trainer import NetworkTrainer, TrainerSettings
from sane_plugins.zoo_training.recipe import RecipeNetwork
from sane_plugins.zoo_training.training_images import TrainingImages
from sane_plugins.zoo_training.worker_processes import report_steps, run_in_workers


@dataclass(frozen=True, kw_only=True)
class NetworkJob:
    """One network to train, the file of its images and that of its state.

    `steps` and `work`, its floating-point operations, say how long that takes beside others.
    """

    index: int
    network: RecipeNetwork
    factory: Mapping[str, Any]
    settings: TrainerSettings
    trust: Trust
    images: Path
    state: Path
    run_key: str
    steps: int
    work: float

    @property
    def is_done(self) -> bool:
        """Return whether this very network was trained to its end."""
        if not self.state.exists():
            return False
        about = read_description(ZOO_TRAINING_STATE, self.state)
        last = str(self.network.training.epochs)
        return about.get("told") == self.run_key and last in about.get("measured", {})


def train_networks(jobs: Sequence[NetworkJob], processes: int) -> Iterator[tuple[int, int]]:
    """Train every network that is not done; yield its index and step from time to time."""
    if processes > 1:
        yield from run_in_workers(_train_in_worker, jobs, processes, _loaded.clear)
        return
    for job in jobs:
        for step in _train(job):
            yield job.index, step
    _loaded.clear()


def store_images(images: TrainingImages, path: Path) -> None:
    """Write a task's images, from which each process loads them when it needs them."""
    stored = {key: x.contiguous() for key, x in vars(images).items()}
    write_whole(path, lambda partial: save_file(stored, partial))


def _train_in_worker(job: NetworkJob) -> None:
    report_steps(job.index, _train(job))


def _train(job: NetworkJob) -> Iterator[int]:
    """Train one network on one thread, unless it is done or the deadline has passed."""
    deadline = job.settings.deadline
    if job.is_done or (deadline is not None and time.time() > deadline):
        return
    with threads(1):
        trainer = NetworkTrainer(job.network, job.factory, _images(job), job.settings, job.trust)
        yield from trainer.run(job.state, job.run_key)


_loaded: dict[tuple[Path, str], TrainingImages] = {}  # this process's, of one task at a time


def _images(job: NetworkJob) -> TrainingImages:
    key = (job.images, job.settings.device)
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = TrainingImages(**load_file(job.images)).on(job.settings.device)
    return _loaded[key]
