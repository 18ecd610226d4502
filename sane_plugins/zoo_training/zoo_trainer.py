"""Training of a zoo in groups of networks, resumable after a kill at any time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from sane_plugins.architectures import Trust, family_name
from sane_plugins.arguments import require_field_types
from sane_plugins.atomic_files import naming
from sane_plugins.errors import UsageError
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.zoo import Entry, Zoo, is_zoo, require_new_zoo, write_zoo
from sane_plugins.zoo_training.batched_networks import BatchedNetworks
from sane_plugins.zoo_training.group_trainer import epoch_tensors, load_group_state
from sane_plugins.zoo_training.hyperparameters import (
    HyperparameterRanges,
    Hyperparameters,
    build_initialized,
    draw_hyperparameters,
)
from sane_plugins.zoo_training.training_images import Schedule, TrainingImages
from sane_plugins.zoo_training.worker_processes import GroupJob, train_groups

_GROUP_SIZES = {"cpu": 12}  # larger groups do not fit into a CPU's cache
_DEFAULT_GROUP_SIZE = 64
_STATE_NAME = re.compile(
    r"(group-\d{4,}|network-[\w.-]+|images(-[0-9a-f]{16})?)\.safetensors|\.sane-plugins-.*"
)


@dataclass(frozen=True, kw_only=True)
class ZooOptions:
    """Which networks to train, and how.

    `settings` are further arguments of the architecture. Checkpoints are kept after the epochs in `keep`
    and evaluated on at most `measured` images. `group` is the number of networks trained at once.
    """

    name: str
    dataset: str
    architecture: str = "small_cnn"
    settings: Mapping[str, Any] = field(default_factory=dict)
    networks: int = 200
    epochs: int = 12
    keep: tuple[int, ...] = (0, 1, 2, 4, 8, 12)
    batch: int = 64
    measured: int = 4000
    seed: int = 0
    ranges: HyperparameterRanges = field(default_factory=HyperparameterRanges)
    device: str = "cpu"
    group: int | None = None

    def __post_init__(self) -> None:
        require_field_types(self)


def train_zoo(
    images: TrainingImages,
    options: ZooOptions,
    out: str | Path,
    *,
    processes: int = 1,
    save_every: int | None = None,
    resume: bool = False,
    force: bool = False,
    report: Report = silent,
    trust: Trust | None = None,
) -> Zoo:
    """Train a zoo and write it to the folder `out`, byte-identical for any number of processes.

    Until the end, the state of every group is kept in a folder next to `out`. It is saved every
    `save_every` steps, or by default so that saving takes about 2 % of the time; a resumed run takes the
    same steps as an uninterrupted one. `trust` says which function may be called to build the networks;
    without it, that is the one which the options name.
    """
    out, trust = Path(out), trust or Trust(frozenset({options.architecture}))
    state = state_folder(out)
    if resume and not state.exists() and is_zoo(out):
        return Zoo.open(out, trust)
    require_start(out, resume, force)
    run_key = _run_key(images, options)
    jobs = plan_jobs(images, options, state, run_key, save_every, trust)
    if state.exists() and not resume:
        shutil.rmtree(state)
    with naming(state):
        state.mkdir(parents=True, exist_ok=True)
    progress = _Progress(options, images, report)
    for index, step in train_groups(jobs, images, state, processes):
        progress.update(index, step, len(jobs[index].draws))
    items = sorted(
        _zoo_items(jobs, options), key=lambda item: (item[0].network, int(item[0].checkpoint))
    )
    zoo = write_zoo(out, options.name, items, force=resume or force)
    shutil.rmtree(state)
    return replace(zoo, trust=trust)


def draw_groups(options: ZooOptions) -> list[list[Hyperparameters]]:
    """Draw the networks' hyper-parameters and group them by activation and dropout."""
    max_size = options.group or _GROUP_SIZES.get(options.device, _DEFAULT_GROUP_SIZE)
    draws = draw_hyperparameters(options.networks, options.ranges, options.seed)
    by_cell = sorted(draws, key=lambda draw: (draw.act, draw.p))
    return [
        part
        for _, cell in groupby(by_cell, key=lambda draw: (draw.act, draw.p))
        for part in _split_evenly(
            sorted(cell, key=lambda draw: (draw.opt != "sgd", draw.seed)), max_size
        )
    ]


def network_factory(
    options: ZooOptions, draw: Hyperparameters, channels: int, classes: int
) -> dict[str, Any]:
    """Return the factory (name and arguments) that builds a network of the zoo."""
    return {
        "name": family_name(options.architecture) or options.architecture,
        "channels_in": channels,
        "classes": classes,
        "act": draw.act,
        "dropout": draw.p,
        **options.settings,
    }


def require_start(out: Path, resume: bool, force: bool, sources: Iterable[str | Path] = ()) -> None:
    """Raise `UsageError` if files would be lost: an earlier run's, or any that a run did not write."""
    state = state_folder(out)
    if os.path.lexists(state):
        if not _is_state(state):
            raise UsageError(
                state,
                "it is not the folder of an interrupted run",
                "the states of training are written there, and deleted at the end",
                "name another zoo, or move it",
            )
        if not (resume or force):
            raise UsageError(
                state,
                "an interrupted run lies there",
                "nothing is overwritten unasked",
                "add --resume to go on, or --force to start anew",
            )
    require_new_zoo(out, force or resume, sources)


def state_folder(out: Path) -> Path:
    """Return the folder of a training's states until its zoo is written."""
    return out.with_name(out.name + ".state")


def _is_state(folder: Path) -> bool:
    """Return whether a folder holds nothing but the states of training."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return all(_STATE_NAME.fullmatch(path.name) for path in folder.iterdir())


def plan_jobs(
    images: TrainingImages,
    options: ZooOptions,
    state: Path,
    run_key: str,
    save_every: int | None,
    trust: Trust,
) -> list[GroupJob]:
    """Split the networks into groups and return one job per group."""
    schedule = Schedule(
        epochs=options.epochs,
        batch=options.batch,
        keep=_epochs_to_keep(options),
        measured=options.measured,
        seed=options.seed,
        save_every=save_every,
        device=options.device,
    )
    channels, classes = images.x_train.shape[1], int(images.y_train.max()) + 1
    jobs = [
        GroupJob(
            index=i,
            draws=draws,
            factory=network_factory(options, draws[0], channels, classes),
            trust=trust,
            schedule=schedule,
            state=state / f"group-{i:04d}.safetensors",
            run_key=run_key,
        )
        for i, draws in enumerate(draw_groups(options))
    ]
    _require_trainable(jobs, images)
    return jobs


def _require_trainable(jobs: list[GroupJob], images: TrainingImages) -> None:
    """Raise `ZooError` up front if a network does not accept the images."""
    seen = set[str]()
    for job in jobs:
        key = json.dumps(job.factory, sort_keys=True)
        if key not in seen:
            BatchedNetworks(
                [build_initialized(job.draws[0], job.factory, job.trust)], "cpu"
            ).require_same_outputs(images.x_test[:2])
        seen.add(key)


def _split_evenly(draws: list[Hyperparameters], max_size: int) -> list[list[Hyperparameters]]:
    """Split into the fewest parts of at most `max_size`, with sizes that differ by at most one."""
    parts = -(-len(draws) // max_size)
    size, remainder = divmod(len(draws), parts)
    ends = [size * (i + 1) + min(i + 1, remainder) for i in range(parts)]
    return [draws[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def _epochs_to_keep(options: ZooOptions) -> tuple[int, ...]:
    """Return the epochs to keep, sorted."""
    out_of_range = [epoch for epoch in options.keep if not 0 <= epoch <= options.epochs]
    if out_of_range or not options.keep:
        raise UsageError(
            "--keep",
            f"it names {out_of_range or 'no epoch'}",
            f"epochs between 0 and {options.epochs} can be kept",
            "name others",
        )
    return tuple(sorted(set(options.keep)))


def _zoo_items(
    jobs: list[GroupJob], options: ZooOptions
) -> Iterator[tuple[Entry, dict[str, torch.Tensor]]]:
    """Yield every checkpoint of the finished groups as a zoo entry and state dict."""
    for job in jobs:
        record, tensors = load_group_state(job.state)
        networks = [build_initialized(draw, job.factory, job.trust) for draw in job.draws]
        stack = BatchedNetworks(networks, "cpu")
        for epoch, rows in record["measured"].items():
            buffers = epoch_tensors(tensors, int(epoch))
            flat = buffers.pop("")
            for i, (draw, measured) in enumerate(zip(job.draws, rows, strict=True)):
                entry = Entry(
                    network=_network_name(options, draw),
                    checkpoint=epoch,
                    factory=job.factory,
                    properties={
                        "epoch": int(epoch),
                        **measured,
                        "dataset": options.dataset,
                        **draw.properties(),
                    },
                )
                yield entry, stack.state_dict(i, flat, buffers)


def _network_name(options: ZooOptions, draw: Hyperparameters) -> str:
    return f"{options.name}-{draw.seed - options.seed * 100_000:04d}"


def _run_key(images: TrainingImages, options: ZooOptions) -> str:
    """Return the options and an image hash as JSON; a run resumes only a state with the same key."""
    digest = hashlib.sha256()
    for tensor in (images.x_train, images.y_train, images.x_test, images.y_test):
        digest.update(tensor.contiguous().numpy().tobytes())
    return json.dumps({**asdict(options), "images": digest.hexdigest()}, sort_keys=True)


class _Progress:
    """Adds up the steps of all groups and estimates the time left."""

    def __init__(self, options: ZooOptions, images: TrainingImages, report: Report) -> None:
        steps = options.epochs * -(-len(images.y_train) // options.batch)
        self._total, self._report = options.networks * steps, report
        self._done: dict[int, int] = {}
        self._start: tuple[float, int] | None = None

    def update(self, index: int, step: int, networks: int) -> None:
        """Report that a group of `networks` networks has reached `step`."""
        self._done[index] = step * networks
        done, now = sum(self._done.values()), time.monotonic()
        if self._start is None:
            self._start = now, done
        seconds, completed = now - self._start[0], done - self._start[1]
        seconds_left = seconds * (self._total - done) / completed if completed else 0.0
        note = (
            f"{seconds_left / 60:.0f} min left"
            if seconds_left >= 90
            else f"{seconds_left:.0f} s left"
            if completed
            else ""
        )
        self._report(Progress(job="train networks", done=done, total=self._total, note=note))
