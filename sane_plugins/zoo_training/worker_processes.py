"""Groups of networks trained in this process, or in several with one thread each."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sane_plugins.atomic_files import write_whole
from sane_plugins.runtime import threads
from sane_plugins.zoo_training.group_trainer import GroupTrainer
from sane_plugins.zoo_training.hyperparameters import Hyperparameters
from sane_plugins.zoo_training.training_images import Schedule, TrainingImages

_REPORT_SECONDS = 0.5
# glibc hands large tensors back to the system at once, and to get them again takes long. It ignores
# a higher threshold than 32 MB.
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**25)}


@dataclass(frozen=True, kw_only=True)
class GroupJob:
    """One group to train, and the file of its state."""

    index: int
    draws: Sequence[Hyperparameters]
    factory: Mapping[str, Any]
    schedule: Schedule
    state: Path
    run_key: str


def train_groups(
    jobs: Sequence[GroupJob], images: TrainingImages, folder: Path, processes: int
) -> Iterator[tuple[int, int]]:
    """Train every group; yield its index and step now and then. `folder` takes the images for processes."""
    if processes > 1:
        yield from _train_in_processes(jobs, images, folder, min(processes, len(jobs)))
        return
    for job in jobs:
        for step in _train(job, images):
            yield job.index, step


def _train(job: GroupJob, images: TrainingImages) -> Iterator[int]:
    """Train one group on one thread, so that the result is the same for any number of processes."""
    with threads(1):
        group = GroupTrainer(job.draws, job.factory, images.on(job.schedule.device), job.schedule)
        yield from group.run(job.state, job.run_key)


def _train_in_processes(
    jobs: Sequence[GroupJob], images: TrainingImages, folder: Path, processes: int
) -> Iterator[tuple[int, int]]:
    shared = folder / "images.safetensors"
    write_whole(shared, lambda partial: save_file(_contiguous(images), partial))
    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    with (
        _environment(_KEEP_MEMORY),
        ProcessPoolExecutor(processes, context, _start_worker, (str(shared), events)) as pool,
    ):
        futures = [pool.submit(_train_in_worker, job) for job in jobs]
        try:
            yield from _reports(futures, events)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _reports(futures: Sequence[Future[None]], events: Any) -> Iterator[tuple[int, int]]:
    """Yield the steps that the processes report until all are done; raise what one of them raises."""
    while True:
        done = [future for future in futures if future.done()]
        for future in done:
            future.result()
        try:
            yield events.get(timeout=0.0 if len(done) == len(futures) else _REPORT_SECONDS)
        except queue.Empty:
            if len(done) == len(futures):
                return


_images: list[TrainingImages] = []
_events: list[Any] = []


def _start_worker(shared: str, events: Any) -> None:
    """Prepare a process, which ends with the one that started it, however that ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _images.append(TrainingImages(**load_file(shared)))
    _events.append(events)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _train_in_worker(job: GroupJob) -> None:
    last = 0.0
    for step in _train(job, _images[0]):
        if time.monotonic() - last >= _REPORT_SECONDS:
            last = time.monotonic()
            _events[0].put((job.index, step))


def _contiguous(images: TrainingImages) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in asdict(images).items()}


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables that processes started within read."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
