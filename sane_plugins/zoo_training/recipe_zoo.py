"""Training of all networks of a recipe, several at once, into one zoo."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sane_plugins.architectures import NO_TRUST, Trust, build
from sane_plugins.atomic_files import naming, require_outputs, write_whole
from sane_plugins.errors import UsageError, ZooError, first_line
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.tasks import forward_flops, load_task
from sane_plugins.zoo import Entry, Zoo, is_zoo, write_zoo
from sane_plugins.zoo_training.augmentation import resized
from sane_plugins.zoo_training.network_jobs import NetworkJob, store_images, train_networks
from sane_plugins.zoo_training.network_trainer import TrainerSettings, load_network_state
from sane_plugins.zoo_training.recipe import Recipe, RecipeNetwork, RecipeTask
from sane_plugins.zoo_training.training_images import TrainingImages
from sane_plugins.zoo_training.zoo_card import CARD_NAME, zoo_card
from sane_plugins.zoo_training.zoo_trainer import require_start, state_folder

_MEASURED = 2000  # images of either kind


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """How a recipe is run: what does not change what its networks become, but for rounding.

    `data` is the folder of its images. After `minutes` training stops, and the zoo has what was kept by then.
    """

    name: str
    data: Path
    device: str = "cpu"
    processes: int = 1
    minutes: float | None = None
    save_every: int | None = None


def train_recipe(
    recipe: Recipe,
    options: RecipeOptions,
    out: str | Path,
    *,
    resume: bool = False,
    force: bool = False,
    report: Report = silent,
    trust: Trust = NO_TRUST,
) -> Zoo:
    """Train the networks of a recipe and write the zoo `out` and its card; the longest begin first.

    On a CPU its bytes are the same for any number of processes and interruptions. Networks are trained side
    by side in processes of one thread each, also on one GPU. Until all are trained their states lie in a
    folder beside the zoo; networks that are added to a recipe do not make the others begin again.
    """
    out, started = Path(out), time.time()
    state = state_folder(out)
    if resume and not state.exists() and is_zoo(out):
        return Zoo.open(out, trust)
    require_start(out, resume, force)
    if out.is_dir():
        require_outputs([out / CARD_NAME], force=force or resume)
    if state.exists() and not resume:
        shutil.rmtree(state)
    with naming(state):
        state.mkdir(parents=True, exist_ok=True)
    jobs = _plan(recipe, options, state, trust, started)
    report(Progress(job=_announcement(jobs, options), done=0, total=0))
    progress = _RecipeProgress(jobs, report)
    for index, step in train_networks(jobs, min(options.processes, len(jobs))):
        progress.update(index, step)
    items = sorted(_zoo_items(jobs), key=lambda x: (x[0].network, int(x[0].checkpoint)))
    zoo = write_zoo(out, options.name, items, force=resume or force)
    card = zoo_card(zoo, recipe)
    write_whole(out / CARD_NAME, lambda partial: partial.write_text(card))
    if all(job.is_done for job in jobs):
        shutil.rmtree(state)
    return replace(zoo, trust=trust)


def load_images(task: RecipeTask, folder: Path) -> TrainingImages:
    """Return a task's images as they are trained on: of its size and channels, in half precision."""
    source = task.source if task.source == "digits" else str(folder / task.source)
    loaded = load_task(source, task.size or None)
    if task.channels and task.channels != loaded.channels:
        if loaded.channels != 1:
            raise UsageError(
                source,
                f"its images have {loaded.channels} channels",
                f"the recipe wants {task.channels}, which only grey images become",
                "correct 'channels' in the recipe",
            )
        loaded = loaded.repeated(task.channels)
    return TrainingImages(
        x_train=loaded.x_train.half(),
        y_train=loaded.y_train,
        x_test=loaded.x_test.half(),
        y_test=loaded.y_test,
    )


def _plan(
    recipe: Recipe, options: RecipeOptions, state: Path, trust: Trust, started: float
) -> list[NetworkJob]:
    """Store each task's images for the workers, and return the jobs, the longest first."""
    jobs: list[NetworkJob] = []
    for name in sorted({network.task for network in recipe.networks}):
        images = load_images(recipe.tasks[name], options.data)
        path = state / f"images-{hashlib.sha256(name.encode()).hexdigest()[:16]}.safetensors"
        plan = _TaskPlan(recipe, options, images, _digest(images), path, trust, started)
        jobs += [plan.job(network) for network in recipe.networks if network.task == name]
        store_images(images, path)
    longest_first = sorted(jobs, key=lambda job: -job.work)
    return [replace(job, index=i) for i, job in enumerate(longest_first)]


@dataclass(frozen=True)
class _TaskPlan:
    """Makes the jobs of the networks of one task."""

    recipe: Recipe
    options: RecipeOptions
    images: TrainingImages
    digest: str
    path: Path
    trust: Trust
    started: float

    def job(self, network: RecipeNetwork) -> NetworkJob:
        """Return the job of a network. Raises `ZooError` where it does not take the images."""
        options, training = self.options, network.training
        factory = {
            **network.factory,
            "channels_in": self.images.x_train.shape[1],
            "classes": int(self.images.y_train.max()) + 1,
        }
        is_cuda = torch.device(options.device).type == "cuda"
        settings = TrainerSettings(
            keep=self.recipe.kept_epochs(network),
            measured=_MEASURED,
            device=options.device,
            bf16=is_cuda and torch.cuda.is_bf16_supported(),
            save_every=options.save_every,
            deadline=None if options.minutes is None else self.started + 60 * options.minutes,
        )
        told: dict[str, Any] = {"factory": factory, "training": asdict(training)}
        told |= {"task": network.task, "images": self.digest}
        told |= {"keep": settings.keep, "bf16": settings.bf16}
        count = min(training.images or len(self.images.y_train), len(self.images.y_train))
        each = self._operations(network, factory)
        return NetworkJob(
            index=0,
            network=network,
            factory=factory,
            settings=settings,
            trust=self.trust,
            images=self.path,
            state=self.path.parent / f"network-{network.name}.safetensors",
            run_key=json.dumps(told, sort_keys=True),
            steps=max(1, count // training.batch) * training.epochs,
            work=3.0 * each * count * training.epochs,  # forwards, and twice that backwards
        )

    def _operations(self, network: RecipeNetwork, factory: Mapping[str, Any]) -> int:
        """Return the operations of a network on one image."""
        module = build(factory, self.trust)
        sample = resized(self.images.x_test[:1], network.training.size)
        try:
            each = forward_flops(module, sample)
            answer = tuple(module(sample).shape)
        except Exception as error:  # any layer may refuse a shape, each in its own words
            raise ZooError(
                network.name,
                f"it does not take images {tuple(sample.shape[1:])} ({first_line(error)})",
                "its form and the images' size must fit",
                "correct 'size' or the factory in the recipe",
            ) from error
        if answer != (1, factory["classes"]):
            raise ZooError(
                network.name,
                f"it answers an image with {answer}",
                "one number per class is needed",
                "name another function in the recipe",
            )
        return each


def _zoo_items(jobs: Sequence[NetworkJob]) -> Iterator[tuple[Entry, dict[str, torch.Tensor]]]:
    """Yield every kept checkpoint as a zoo entry and state dict; before a deadline there may be none."""
    for job in jobs:
        if not job.state.exists():
            continue
        about, tensors = load_network_state(job.state)
        for epoch, measured in about["measured"].items():
            entry = Entry(
                network=job.network.name,
                checkpoint=epoch,
                factory=job.factory,
                properties={
                    "epoch": int(epoch),
                    **measured,
                    "dataset": job.network.task,
                    "form": str(job.network.factory["name"]),
                    **asdict(job.network.training),
                },
            )
            prefix = f"kept.{epoch}."
            kept = {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}
            yield entry, kept


def _digest(images: TrainingImages) -> str:
    digest = hashlib.sha256()
    for tensor in (images.x_train, images.y_train, images.x_test, images.y_test):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _announcement(jobs: Sequence[NetworkJob], options: RecipeOptions) -> str:
    done, work = sum(job.is_done for job in jobs), sum(job.work for job in jobs) / 1e12
    rest = f", {done} of them trained already" if done else ""
    many = f"{options.processes} at a time on {options.device}"
    return f"Train {len(jobs)} networks{rest}: {work:,.3g} TFLOP, {many}"


class _RecipeProgress:
    """Adds up the steps of all networks, and estimates the time left by the work of each."""

    def __init__(self, jobs: Sequence[NetworkJob], report: Report) -> None:
        self._jobs, self._report, self._start = jobs, report, time.monotonic()
        self._steps = {job.index: job.steps if job.is_done else 0 for job in jobs}
        self._before = 0.0
        self._resumed: set[int] = set()

    def update(self, index: int, step: int) -> None:
        """Report that a network has reached `step`."""
        if index not in self._resumed:  # its first report: what came before was done earlier
            self._resumed.add(index)
            self._before += self._work(index, step)
        self._steps[index] = step
        done = sum(self._work(i, n) for i, n in self._steps.items())
        new = done - self._before - sum(j.work for j in self._jobs if self._is_old(j))
        left = sum(job.work for job in self._jobs) - done
        seconds = (time.monotonic() - self._start) * left / new if new > 0 else 0.0
        over = sum(self._steps[job.index] >= job.steps for job in self._jobs)
        note = f"{over} of {len(self._jobs)} networks"
        if seconds:
            note += f", {seconds / 60:.0f} min left" if seconds >= 90 else f", {seconds:.0f} s left"
        total = sum(job.steps for job in self._jobs)
        steps = sum(self._steps.values())
        self._report(Progress(job="train networks", done=steps, total=total, note=note))

    def _work(self, index: int, step: int) -> float:
        return self._jobs[index].work * step / self._jobs[index].steps

    def _is_old(self, job: NetworkJob) -> bool:
        return job.index not in self._resumed and self._steps[job.index] == job.steps
