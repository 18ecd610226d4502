"""Training of one network of a recipe: any form, on any device, resumable in the middle of an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sane_plugins.architectures import NO_TRUST, Trust, build
from sane_plugins.errors import UsageError
from sane_plugins.formats import ZOO_TRAINING_STATE, load_artifact, require_like, save_artifact
from sane_plugins.runtime import drawing_from, random_stream
from sane_plugins.zoo_training.augmentation import EpochPlan, resized
from sane_plugins.zoo_training.recipe import NetworkTraining, RecipeNetwork
from sane_plugins.zoo_training.state_saver import ZooStateSaver
from sane_plugins.zoo_training.training_images import TrainingImages

_WARM_UP = 0.15  # share of the schedule in which the learning rate rises
_LEAST_RATE = 0.01  # share of the peak rate at the end
_MAX_NORM = 5.0  # of a step's gradient
_MEASURED_BATCH = 500
_STATE_KEYS = ("step", "told", "measured")


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """What the networks of a run share: kept epochs, images that are measured, device and precision.

    Training stops between two steps once `time.time()` has passed `deadline`, and may be resumed.
    """

    keep: tuple[int, ...]
    measured: int
    device: str
    bf16: bool
    save_every: int | None
    deadline: float | None = None


class NetworkTrainer:
    """Trains one network; the same recipe and images give the same bytes on a CPU, however often it stops.

    A network whose weights are no longer finite after a kept epoch falls back to the one kept before, and
    stops.
    """

    def __init__(
        self,
        network: RecipeNetwork,
        factory: Mapping[str, Any],
        images: TrainingImages,
        settings: TrainerSettings,
        trust: Trust = NO_TRUST,
    ) -> None:
        self.network, self.settings, self.images = network, settings, images
        training, self._device = network.training, torch.device(settings.device)
        with drawing_from(random_stream(training.seed, network.name)):
            module = build(factory, trust)
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module = module.to(self._device)
        self.optimizer = _optimizer(self.module, training)
        self._train_rows = self._chosen_images().to(self._device)
        self.step, self.is_finite = 0, True
        self.kept: dict[int, dict[str, torch.Tensor]] = {}
        self.measured: dict[int, dict[str, float | bool]] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of steps of an epoch; a last batch that is not full is left out."""
        return max(1, len(self._train_rows) // self.network.training.batch)

    @property
    def total(self) -> int:
        """Return the number of all steps."""
        return self.steps_per_epoch * self.network.training.epochs

    def run(self, state: Path, run_key: str) -> Iterator[int]:
        """Train to the end or the deadline, resuming from `state` if it exists; yield each step's number."""
        if state.exists():
            self._restore(state, run_key)
        saver = ZooStateSaver(self, state, run_key, self.settings.save_every)
        plan: EpochPlan | None = None
        while True:
            epoch, batch = divmod(self.step, self.steps_per_epoch)
            if not batch:
                plan = None
                self._keep_if_due(epoch)
            if self.step == self.total or self._is_late():
                break
            if self.is_finite:
                plan = plan or self._plan(epoch)
                self._train(plan, batch)
            self.step += 1
            saver.save_if_due()
            yield self.step
        saver.save()

    def _is_late(self) -> bool:
        return self.settings.deadline is not None and time.time() > self.settings.deadline

    def _chosen_images(self) -> torch.Tensor:
        """Return the rows of the training images that this network sees."""
        training, count = self.network.training, len(self.images.y_train)
        if not training.images or training.images >= count:
            return torch.arange(count, device="cpu")
        rng = random_stream(training.seed, self.network.name, "images")
        return torch.randperm(count, generator=rng)[: training.images].sort().values

    def _plan(self, epoch: int) -> EpochPlan:
        training = self.network.training
        return EpochPlan.draw(
            len(self._train_rows),
            augment=training.augment,
            rng=random_stream(training.seed, self.network.name, "epoch", epoch),
            device=self._device,
        )

    def _train(self, plan: EpochPlan, batch: int) -> None:
        training = self.network.training
        part = slice(batch * training.batch, (batch + 1) * training.batch)
        rows = self._train_rows[plan.order[part]]
        images = plan.images(self.images.x_train, rows, part, training.size)
        for group in self.optimizer.param_groups:
            group["lr"] = training.lr * one_cycle(self.step / self.total)
        self.module.train()
        self.optimizer.zero_grad()
        with self._precision():
            logits = self.module(images)
        loss = cross_entropy(
            logits.float(), self.images.y_train[rows], label_smoothing=training.smoothing
        )
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), _MAX_NORM)
        self.optimizer.step()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.settings.bf16)

    @torch.no_grad()
    def _keep_if_due(self, epoch: int) -> None:
        """Keep and measure the network at the end of an epoch, if that one is kept."""
        if epoch not in self.settings.keep or epoch in self.kept:
            return
        state = self.module.state_dict()
        if not all(bool(x.isfinite().all()) for x in state.values() if x.is_floating_point()):
            self.is_finite = False
            self.module.load_state_dict(self.kept[max(self.kept)])
        self.kept[epoch] = {key: x.detach().clone() for key, x in self.module.state_dict().items()}
        limit, images = self.settings.measured, self.images
        rows = self._train_rows[:limit]
        test = self._accuracy_and_loss(images.x_test[:limit], images.y_test[:limit])
        train = self._accuracy_and_loss(images.x_train[rows], images.y_train[rows])
        self.measured[epoch] = {
            "test_accuracy": test[0],
            "train_accuracy": train[0],
            "gap": train[0] - test[0],
            "test_loss": test[1],
            "train_loss": train[1],
            "finite": self.is_finite,
        }

    def _accuracy_and_loss(self, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
        """Return accuracy and loss in evaluation mode; a loss that is not finite is the largest float32."""
        self.module.eval()
        correct, loss = torch.zeros((), device=x.device), torch.zeros((), device=x.device)
        for images, labels in zip(x.split(_MEASURED_BATCH), y.split(_MEASURED_BATCH), strict=True):
            with self._precision():
                logits = self.module(resized(images, self.network.training.size)).float()
            correct += (logits.argmax(1) == labels).sum()
            loss += cross_entropy(logits, labels, reduction="sum")
        most = torch.finfo(torch.float32).max
        return float(correct) / len(y), float((loss / len(y)).nan_to_num(nan=most, posinf=most))

    def save(self, path: Path, run_key: str) -> None:
        """Write the state atomically."""
        tensors = {f"module.{key}": x for key, x in self.module.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": x for key, x in moments.items()}
        for epoch, kept in self.kept.items():
            tensors |= {f"kept.{epoch}.{key}": x for key, x in kept.items()}
        told = {"step": self.step, "told": run_key, "measured": self.measured}
        save_artifact(ZOO_TRAINING_STATE, told, tensors, path)

    def _restore(self, path: Path, run_key: str) -> None:
        """Load a saved state. Raises `UsageError` if that run had another recipe or other images."""

        def load(about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
            if about["told"] != run_key:
                raise UsageError(
                    path.parent,
                    "the interrupted run had another recipe or other images",
                    "a run resumes with the same ones",
                    "repeat them, or add --force to start anew",
                )
            step, measured = about["step"], about["measured"]
            if type(step) is not int or not 0 <= step <= self.total:
                raise ValueError(f"step is no whole number up to {self.total}")
            own = self.module.state_dict()
            for epoch in measured:
                if int(epoch) not in self.settings.keep:
                    raise ValueError("it was measured at other epochs")
            for prefix in ("module", *(f"kept.{int(epoch)}" for epoch in measured)):
                for key, value in own.items():
                    require_like(f"{prefix}.{key}", tensors[f"{prefix}.{key}"], value)
            self.module.load_state_dict({key: tensors[f"module.{key}"] for key in own})
            self._restore_moments(tensors)
            self.step = step
            self.measured = {int(epoch): dict(row) for epoch, row in measured.items()}
            self.is_finite = all(row["finite"] for row in self.measured.values())
            self.kept = {
                epoch: {key: tensors[f"kept.{epoch}.{key}"].to(x.device) for key, x in own.items()}
                for epoch in self.measured
            }

        load_artifact(ZOO_TRAINING_STATE, path, load)

    def _restore_moments(self, tensors: Mapping[str, torch.Tensor]) -> None:
        parameters = [x for group in self.optimizer.param_groups for x in group["params"]]
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                like = torch.zeros((), device="cpu") if name == "step" else parameters[int(index)]
                require_like(key, value, like)
                moments.setdefault(int(index), {})[name] = value.clone()
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def load_network_state(path: Path) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor]]:
    """Return the description (`step`, `told`, `measured`) and the tensors of a network's saved state."""
    return load_artifact(
        ZOO_TRAINING_STATE,
        path,
        lambda about, tensors: ({key: about[key] for key in _STATE_KEYS}, tensors),
    )


def one_cycle(done: float) -> float:
    """Return the learning rate, relative to its peak, at a share of the schedule."""
    if done < _WARM_UP:
        return max(_LEAST_RATE, done / _WARM_UP)
    fall = (done - _WARM_UP) / (1 - _WARM_UP)
    return _LEAST_RATE + (1 - _LEAST_RATE) * (1 + math.cos(math.pi * min(1.0, fall))) / 2


def _optimizer(module: nn.Module, training: NetworkTraining) -> torch.optim.Optimizer:
    """Build the optimiser; only kernels decay."""
    kernels = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    groups = [
        {"params": kernels, "weight_decay": training.wd},
        {"params": others, "weight_decay": 0.0},
    ]
    if training.opt == "sgd":
        return torch.optim.SGD(groups, lr=training.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=training.lr)
