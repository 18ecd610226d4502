"""Training of one group of networks: steps, evaluation, and resumable state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from sane_plugins.architectures import NO_TRUST, Trust
from sane_plugins.errors import UsageError
from sane_plugins.formats import ZOO_TRAINING_STATE, load_artifact, require_like, save_artifact
from sane_plugins.zoo_training.batched_layers import BatchedBatchNorm2d, BatchedConv2d
from sane_plugins.zoo_training.batched_networks import BatchedNetworks
from sane_plugins.zoo_training.hyperparameters import Hyperparameters, build_initialized
from sane_plugins.zoo_training.state_saver import ZooStateSaver
from sane_plugins.zoo_training.training_images import Schedule, TrainingImages, channels_last

_CPU_MICRO_BATCH = 32
_STATE_KEYS = ("step", "told", "measured")
_MOMENTUM, _BETA1, _BETA2, _EPSILON = 0.9, 0.9, 0.999, 1e-8


class GroupTrainer:
    """Trains networks of one architecture, each with its own hyper-parameters and seed.

    A network's result does not depend on the others, except for rounding. A network whose gradient or
    updated weights are not finite stops training and keeps its last finite weights.
    """

    def __init__(
        self,
        draws: Sequence[Hyperparameters],
        factory: Mapping[str, Any],
        images: TrainingImages,
        schedule: Schedule,
        trust: Trust = NO_TRUST,
    ) -> None:
        self.draws, self.factory, self.images, self.schedule = draws, factory, images, schedule
        self.stack = BatchedNetworks(
            [build_initialized(draw, factory, trust) for draw in draws], schedule.device
        )
        self.first, self.second = (torch.zeros_like(self.stack.flat) for _ in range(2))
        self.alive = torch.ones(len(draws), dtype=torch.bool, device=schedule.device)
        self.step, self.kept = 0, dict[int, dict[str, torch.Tensor]]()
        self.measured: dict[int, list[dict[str, float | bool]]] = {}
        self._rates = _UpdateRates(draws, schedule.device)
        self.stack.require_same_outputs(images.x_test[:2])

    @property
    def total(self) -> int:
        """Return the total number of training steps."""
        return self.schedule.epochs * self.schedule.steps(len(self.images.y_train))

    def run(self, state: Path, run_key: str) -> Iterator[int]:
        """Train to the end, resuming from `state` if it exists; yield the step number after each step."""
        if state.exists():
            self._restore(state, run_key)
        saver = ZooStateSaver(self, state, run_key, self.schedule.save_every)
        per_epoch = self.schedule.steps(len(self.images.y_train))
        order: torch.Tensor | None = None
        while True:
            epoch, batch = divmod(self.step, per_epoch)
            if not batch and epoch in self.schedule.keep and epoch not in self.kept:
                self._keep_checkpoint(epoch)
            if self.step == self.total:
                break
            if not batch or order is None:
                order = self.schedule.order(epoch, len(self.images.y_train))
            rows = order[batch * self.schedule.batch : (batch + 1) * self.schedule.batch]
            self._train(rows.to(self.schedule.device))
            self.step += 1
            saver.save_if_due()
            yield self.step
        saver.save()

    def losses(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy (G,) of each network."""
        logits = self.stack.logits(images).float()
        repeated_labels = labels.repeat_interleave(self.stack.count)
        loss = cross_entropy(logits.flatten(0, 1), repeated_labels, reduction="none")
        return loss.view(-1, self.stack.count).mean(0)

    def _train(self, rows: torch.Tensor) -> None:
        """Take one training step of every network on these images."""
        stack = self.stack
        for draw, stream in zip(self.draws, stack.streams, strict=True):
            stream.manual_seed(draw.seed * 1_000_003 + self.step)
        before = {name: buffer.clone() for name, buffer in stack.buffers.items()}
        stack.module.train()
        gradient = torch.zeros_like(stack.flat)
        for part in rows.split(self._micro_batch(self.schedule.batch)):
            images, labels = channels_last(self.images.x_train[part]), self.images.y_train[part]
            gradient += stack.gradient(self.losses(images, labels).sum() * (len(part) / len(rows)))
        with torch.no_grad():
            self._update(gradient)
            for name, buffer in stack.buffers.items():
                buffer.copy_(_where_rows(self.alive, buffer, before[name]))

    def _micro_batch(self, batch: int) -> int:
        """Return the micro-batch size, the same for any group.

        Feature maps of a few images fit into the CPU cache; batch norms need the whole batch.
        """
        types = {type(layer) for layer in self.stack.module.modules()}
        on_cpu = self.schedule.device == "cpu"
        return (
            _CPU_MICRO_BATCH
            if on_cpu and BatchedConv2d in types and BatchedBatchNorm2d not in types
            else batch
        )

    def _update(self, gradient: torch.Tensor) -> None:
        """Update all parameters from gradients (G, P), as torch's SGD with momentum and Adam do."""
        rates, flat = self._rates, self.stack.flat
        self.alive &= gradient.isfinite().all(1)
        gradient = (
            _where_rows(self.alive, gradient, torch.zeros_like(gradient)) + rates.decay * flat
        )
        new = torch.empty_like(flat)
        sgd, adam = rates.sgd, rates.adam
        self.first[sgd] = _MOMENTUM * self.first[sgd] + gradient[sgd]
        new[sgd] = flat[sgd] - rates.rate[sgd] * self.first[sgd]
        self.first[adam] += (1 - _BETA1) * (gradient[adam] - self.first[adam])
        self.second[adam] = _BETA2 * self.second[adam] + (1 - _BETA2) * gradient[adam] ** 2
        bias1, bias2 = 1 - _BETA1 ** (self.step + 1), 1 - _BETA2 ** (self.step + 1)
        scale = self.second[adam].sqrt() / bias2**0.5 + _EPSILON
        new[adam] = flat[adam] - rates.rate[adam] / bias1 * self.first[adam] / scale
        self.alive &= new.isfinite().all(1)
        flat.copy_(_where_rows(self.alive, new, flat))

    @torch.no_grad()
    def _keep_checkpoint(self, epoch: int) -> None:
        """Copy the networks' current weights and evaluate them."""
        stack = self.stack
        buffers = {name: value.detach().clone() for name, value in stack.buffers.items()}
        self.kept[epoch] = {"": stack.flat.clone(), **buffers}
        stack.module.eval()
        limit = self.schedule.measured
        test = self._accuracies_and_losses(self.images.x_test[:limit], self.images.y_test[:limit])
        train = self._accuracies_and_losses(
            self.images.x_train[:limit], self.images.y_train[:limit]
        )
        alive = self.alive.tolist()
        self.measured[epoch] = [
            {
                "test_accuracy": a,
                "train_accuracy": b,
                "gap": b - a,
                "test_loss": c,
                "train_loss": d,
                "finite": finite,
            }
            for (a, c), (b, d), finite in zip(test, train, alive, strict=True)
        ]

    def _accuracies_and_losses(self, x: torch.Tensor, y: torch.Tensor) -> list[tuple[float, float]]:
        """Return accuracy and loss of each network; NaN or infinite losses become the largest float32."""
        correct = torch.zeros(self.stack.count, device=x.device)
        loss = torch.zeros(self.stack.count, device=x.device, dtype=torch.float64)
        part = self._micro_batch(self.schedule.batch)
        for images, labels in zip(x.split(part), y.split(part), strict=True):
            logits = self.stack.logits(channels_last(images))
            correct += (logits.argmax(2) == labels[:, None]).sum(0)
            repeated_labels = labels.repeat_interleave(self.stack.count)
            values = cross_entropy(logits.float().flatten(0, 1), repeated_labels, reduction="none")
            loss += values.view(-1, self.stack.count).double().sum(0)
        mean = (loss / len(y)).float().nan_to_num(nan=torch.finfo(torch.float32).max)
        return list(zip((correct / len(y)).tolist(), mean.tolist(), strict=True))

    def save(self, path: Path, run_key: str) -> None:
        """Write the state atomically."""
        tensors = self._state_tensors()
        for epoch, checkpoint in self.kept.items():
            tensors |= {f"kept.{epoch}.{name}": value for name, value in checkpoint.items()}
        description = {"step": self.step, "told": run_key, "measured": self.measured}
        save_artifact(ZOO_TRAINING_STATE, description, tensors, path)

    def _state_tensors(self) -> dict[str, torch.Tensor]:
        """Return what a state holds beside its checkpoints."""
        tensors = {"weights": self.stack.flat, "first": self.first, "second": self.second}
        tensors["alive"] = self.alive
        return tensors | {f"buffer.{name}": value for name, value in self.stack.buffers.items()}

    def _restore(self, path: Path, run_key: str) -> None:
        """Load a saved state. Raises `UsageError` if that run had other options or images."""

        def load(about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
            if about["told"] != run_key:
                raise UsageError(
                    path.parent,
                    "the interrupted run had other options or images",
                    "a run resumes with the same ones",
                    "repeat them, or add --force to start anew",
                )
            step, measured = about["step"], about["measured"]
            if type(step) is not int or not 0 <= step <= self.total:
                raise ValueError(f"step is no whole number up to {self.total}")
            for name, value in self._state_tensors().items():
                require_like(name, tensors[name], value)
            for epoch, rows in measured.items():
                is_known = int(epoch) in self.schedule.keep and len(rows) == len(self.draws)
                if not is_known or not all(isinstance(row, dict) for row in rows):
                    raise ValueError("it was measured at other epochs, or with other networks")
                checkpoint = {"": self.stack.flat, **self.stack.buffers}
                for name, value in checkpoint.items():
                    require_like(name, tensors[f"kept.{epoch}.{name}"], value)
            for name, value in self._state_tensors().items():
                value.copy_(tensors[name])
            self.step = step
            self.measured = {int(epoch): rows for epoch, rows in measured.items()}
            self.kept = {epoch: epoch_tensors(tensors, epoch) for epoch in self.measured}

        load_artifact(ZOO_TRAINING_STATE, path, load)


def load_group_state(path: Path) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor]]:
    """Return the description (`step`, `told`, `measured`) and the tensors of a group's saved state."""
    return load_artifact(
        ZOO_TRAINING_STATE,
        path,
        lambda about, tensors: ({key: about[key] for key in _STATE_KEYS}, tensors),
    )


def epoch_tensors(tensors: Mapping[str, torch.Tensor], epoch: int) -> dict[str, torch.Tensor]:
    """Return the checkpoint of an epoch: all parameters under the name "", and the buffers."""
    prefix = f"kept.{epoch}."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


class _UpdateRates:
    """Learning rates and weight decays (G, 1), and the rows of each optimiser."""

    def __init__(self, draws: Sequence[Hyperparameters], device: str) -> None:
        self.rate = torch.tensor([[draw.lr] for draw in draws], device=device)
        self.decay = torch.tensor([[draw.wd] for draw in draws], device=device)
        # The draws of a group are sorted by optimiser.
        count = sum(draw.opt == "sgd" for draw in draws)
        self.sgd, self.adam = slice(0, count), slice(count, len(draws))


def _where_rows(keep: torch.Tensor, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Return the rows of `new` where `keep` (G,) is true, and those of `old` elsewhere."""
    return torch.where(keep.view(-1, *(1,) * (new.ndim - 1)), new, old)
