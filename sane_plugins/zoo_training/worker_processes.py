"""Training of groups of networks in this process, or in worker processes with one thread each."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors.torch import load_file, save_file

from sane_plugins.architectures import Trust
from sane_plugins.atomic_files import write_whole
from sane_plugins.runtime import threads
from sane_plugins.zoo_training.group_trainer import GroupTrainer
from sane_plugins.zoo_training.hyperparameters import Hyperparameters
from sane_plugins.zoo_training.training_images import Schedule, TrainingImages

_REPORT_SECONDS = 0.5
# glibc returns freed large tensors to the system at once, and allocating them again is slow. It ignores
# thresholds above 32 MB.
_MALLOC_SETTINGS = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
# A worker starts as `python -c`, which searches the working directory first, until it has our path.
_PATH_SETTINGS = {"PYTHONSAFEPATH": "1"}


@dataclass(frozen=True, kw_only=True)
class GroupJob:
    """One group to train, and its state file."""

    index: int
    draws: Sequence[Hyperparameters]
    factory: Mapping[str, Any]
    trust: Trust
    schedule: Schedule
    state: Path
    run_key: str


def train_groups(
    jobs: Sequence[GroupJob], images: TrainingImages, folder: Path, processes: int
) -> Iterator[tuple[int, int]]:
    """Train every group; yield its index and step from time to time.

    `folder` receives the images that worker processes share.
    """
    if processes > 1:
        yield from _train_in_processes(jobs, images, folder, min(processes, len(jobs)))
        return
    for job in jobs:
        for step in _train(job, images):
            yield job.index, step


def _train(job: GroupJob, images: TrainingImages) -> Iterator[int]:
    """Train one group on one thread, so that the result does not depend on the number of processes."""
    with threads(1):
        on_device = images.on(job.schedule.device)
        group = GroupTrainer(job.draws, job.factory, on_device, job.schedule, job.trust)
        yield from group.run(job.state, job.run_key)


def _train_in_processes(
    jobs: Sequence[GroupJob], images: TrainingImages, folder: Path, processes: int
) -> Iterator[tuple[int, int]]:
    shared = folder / "images.safetensors"
    write_whole(shared, lambda partial: save_file(_contiguous(images), partial))
    yield from run_in_workers(_train_in_worker, jobs, processes, _load_images, str(shared))


class Job(Protocol):
    """Work of one process, by a number."""

    @property
    def index(self) -> int:
        """Return its number."""


J = TypeVar("J", bound=Job)


def run_in_workers(
    train: Callable[[J], None],
    jobs: Sequence[J],
    processes: int,
    start: Callable[..., object],
    *arguments: object,
) -> Iterator[tuple[int, int]]:
    """Train every job in one of some processes, each of which begins with `start`; yield what they report.

    A job reports its index and step through `report_steps`. Where one fails, all end.
    """
    context = multiprocessing.get_context("spawn")
    with _environment(_MALLOC_SETTINGS | _PATH_SETTINGS):
        events: Any = context.Queue()  # starts a process too, which counts semaphores
        pool = ProcessPoolExecutor(processes, context, _start_worker, (events, start, arguments))
        yield from _run_jobs(train, jobs, pool, events)


def _run_jobs(
    train: Callable[[J], None], jobs: Sequence[J], executor: ProcessPoolExecutor, events: Any
) -> Iterator[tuple[int, int]]:
    """Run every job; yield its index and step, and end the processes where one fails."""
    with executor as pool:
        futures = [pool.submit(train, job) for job in jobs]
        try:
            yield from _progress_events(futures, events)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _progress_events(futures: Sequence[Future[None]], events: Any) -> Iterator[tuple[int, int]]:
    """Yield the steps reported by the workers until all are done; re-raise their exceptions."""
    while True:
        done = [future for future in futures if future.done()]
        for future in done:
            future.result()
        try:
            yield events.get(timeout=0.0 if len(done) == len(futures) else _REPORT_SECONDS)
        except queue.Empty:
            if len(done) == len(futures):
                return


_worker_images: list[TrainingImages] = []
_worker_events: list[Any] = []


def _start_worker(events: Any, start: Callable[..., object], arguments: Sequence[object]) -> None:
    """Set up a worker process, which exits with its parent however that ends."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _worker_events.append(events)
    start(*arguments)


def _load_images(shared: str) -> None:
    _worker_images.append(TrainingImages(**load_file(shared)))


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _train_in_worker(job: GroupJob) -> None:
    report_steps(job.index, _train(job, _worker_images[0]))


def report_steps(index: int, steps: Iterable[int]) -> None:
    """Take the steps of a job in a worker process, and report some of them to its parent."""
    last = 0.0
    for step in steps:
        if time.monotonic() - last >= _REPORT_SECONDS:
            last = time.monotonic()
            _worker_events[0].put((index, step))


def _contiguous(images: TrainingImages) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in asdict(images).items()}


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, unless already set, for processes started within the context."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
