"""Groups of networks trained here, or by several processes with one thread each."""

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

_TELL_EVERY = 0.5  # seconds
# glibc hands large tensors back to the system at once, and to get them again takes long. It ignores
# a higher threshold than 32 MB.
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**25)}


@dataclass(frozen=True, kw_only=True)
class GroupJob:
    """One group to train, and where its state lies."""

    index: int
    draws: Sequence[Hyperparameters]
    factory: Mapping[str, Any]
    schedule: Schedule
    state: Path
    told: str


def run_jobs(
    jobs: Sequence[GroupJob], images: TrainingImages, folder: Path, processes: int
) -> Iterator[tuple[int, int]]:
    """Train every group; yield its index and step now and then. `folder` takes the images for processes."""
    if processes > 1:
        yield from _run_apart(jobs, images, folder, min(processes, len(jobs)))
        return
    for job in jobs:
        for step in _run(job, images):
            yield job.index, step


def _run(job: GroupJob, images: TrainingImages) -> Iterator[int]:
    """Train one group on one thread, so that the result is the same for any number of processes."""
    with threads(1):
        group = GroupTrainer(job.draws, job.factory, images.on(job.schedule.device), job.schedule)
        yield from group.run(job.state, job.told)


def _run_apart(
    jobs: Sequence[GroupJob], images: TrainingImages, folder: Path, processes: int
) -> Iterator[tuple[int, int]]:
    shared = folder / "images.safetensors"
    write_whole(shared, lambda partial: save_file(_contiguous(images), partial))
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    with (
        _environment(_KEEP_MEMORY),
        ProcessPoolExecutor(processes, context, _begin, (str(shared), told)) as pool,
    ):
        futures = [pool.submit(_work, job) for job in jobs]
        try:
            yield from _reports(futures, told)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _reports(futures: Sequence[Future[None]], told: Any) -> Iterator[tuple[int, int]]:
    """Yield what the processes tell until all are done; raise what one of them raises."""
    while True:
        done = [future for future in futures if future.done()]
        for future in done:
            future.result()
        try:
            yield told.get(timeout=0.0 if len(done) == len(futures) else _TELL_EVERY)
        except queue.Empty:
            if len(done) == len(futures):
                return


_images: list[TrainingImages] = []
_told: list[Any] = []


def _begin(shared: str, told: Any) -> None:
    """Prepare a process, which ends with the one that started it, however that ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _images.append(TrainingImages(**load_file(shared)))
    _told.append(told)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(job: GroupJob) -> None:
    last = 0.0
    for step in _run(job, _images[0]):
        if time.monotonic() - last >= _TELL_EVERY:
            last = time.monotonic()
            _told[0].put((job.index, step))


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
