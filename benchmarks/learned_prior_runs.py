"""One cell of `learned_prior.py`: what is done with a network on a task, with one seed, and what each is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import ceil
from typing import Any

import torch
from feature_regression import BATCH
from learned_prior_setting import (
    DRAWS,
    FEW,
    HELD_OUT,
    LR,
    NETWORKS,
    RATES,
    SETTLED,
    STEPS,
    TRAINED,
    TRIED,
    read_prompt,
)
from torch import nn
from torch.nn.functional import cross_entropy, layer_norm

from sane_plugins.autoencoder import SANE, decode, encode
from sane_plugins.errors import TaskError
from sane_plugins.generation import FilledTransfer, RefineOptions, refine
from sane_plugins.generation.filled_transfer import FILLED
from sane_plugins.grafting import (
    condition,
    find_classifier,
    fit_classifier,
    transfer_methods,
)
from sane_plugins.runtime import seeded
from sane_plugins.tasks import Task, accuracy
from sane_plugins.weights import RUNNING, copy_module, from_module, load_into

Images = tuple[torch.Tensor, torch.Tensor]
State = Mapping[str, torch.Tensor]


class Cell:
    """All runs of a network on a task with one seed."""

    def __init__(self, model: SANE, network: str, task: Task, seed: int) -> None:
        self.model, self.task, self.seed = model, task, seed
        prompt, self._make = NETWORKS[network]
        self.prompt = read_prompt(prompt)
        self._base: State = {}
        self._base_wrong = torch.zeros(0)

    def runs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the name and the figures of each run."""
        methods = transfer_methods()
        grafted = self._fresh()
        methods["graft"](grafted, self.prompt, self.task, self._rng())
        told = self._as_base(grafted)
        yield "graft", told
        filled = self._fresh()
        written = FilledTransfer(methods["graft"], self.model)(
            filled, self.prompt, self.task, self._rng()
        )
        open_keys = [key for key, label in written.origins.items() if label == FILLED]
        of_open: Mapping[str, Callable[[], nn.Module]] = {
            "filled": lambda: filled,
            "open tensors Gaussian": lambda: _gaussian_like(filled, open_keys, self._rng()),
            "open tensors decoded": lambda: self._projected(grafted, open_keys),
        }
        for name, make in of_open.items():  # where nothing is open all are the graft
            yield name, {**(self._run(make()) if open_keys else told), "open": len(open_keys)}
        module = self._transferred()
        yield "transfer", self._as_base(module)
        for name, sigma in (("draw 0.1", 0.1), ("draw 0.03", 0.03)):
            draws = [self._draw(module, sigma, i) for i in range(DRAWS)]
            yield name, self._run(min(draws, key=self._loss))
            noised = [self._noised(module, draw, i) for i, draw in enumerate(draws)]
            yield f"noise as {name}", self._run(min(noised, key=self._loss))
        for name in RATES:
            moved, rate = self._best_moved(module, name)
            yield name, {**self._run(moved), "rate": rate}
            if name == "refined":
                yield "noise as refined", self._run(self._noised(module, moved, 0))

    def rates_tried(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the figures of the transfer, and of each kind of steps with each rate, by "KIND, RATE"."""
        module = self._transferred()
        yield "transfer", self._as_base(module)
        for name, rates in TRIED.items():
            for rate in rates:
                yield f"{name}, {rate}", self._run(self._moved(module, name, rate))

    def _transferred(self) -> nn.Module:
        module = self._fresh()
        transfer_methods()["regression-protected"](module, self.prompt, self.task, self._rng())
        return module

    def _fresh(self) -> nn.Module:
        with seeded(self._rng()):
            return _fast(self._make(len(self.task.classes)))

    def _rng(self, more: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + 1000 * more)

    def _ready(self, module: nn.Module) -> nn.Module:
        """Measure statistics and fit the classifier, in place."""
        self._loss(module)
        return module

    def _loss(self, module: nn.Module) -> float:
        condition(module, self.task.x_train, 16, BATCH, self._rng())
        layer = find_classifier(module, self.task.x_train[:2])
        assert layer is not None
        return float(fit_classifier(module, layer, self.task.x_train, self.task.y_train).loo_loss)

    @torch.no_grad()
    def _draw(self, module: nn.Module, sigma: float, number: int) -> nn.Module:
        graph = from_module(module)
        latents = encode(self.model, graph).values
        noise = torch.randn(latents.shape, generator=self._rng(1 + number))
        moved = layer_norm(latents + sigma * noise, latents.shape[-1:])
        drawn, plain = (decode(self.model, x, graph) for x in (moved, latents))
        found = copy_module(module)
        new = {
            p.key: graph.tensors[p.key] + drawn.tensors[p.key] - plain.tensors[p.key]
            for p in graph.params
            if p.role not in RUNNING
        }
        load_into(found, graph.replace(new))
        return found

    @torch.no_grad()
    def _projected(self, module: nn.Module, keys: list[str]) -> nn.Module:
        """Return the module with tensors as they come back when it is encoded and decoded, none hidden."""
        found, graph = copy_module(module), from_module(module)
        decoded = decode(self.model, encode(self.model, graph).values, graph)
        load_into(found, graph.replace({key: decoded.tensors[key] for key in keys}))
        return found

    @torch.no_grad()
    def _noised(self, module: nn.Module, like: nn.Module, number: int) -> nn.Module:
        """Return the module with Gaussian noise, in each tensor as far from it as the other module is."""
        found, rng = copy_module(module), self._rng(50 + number)
        others = dict(like.named_parameters())
        for key, value in found.named_parameters():
            value.copy_(noised(value, others[key], rng))
        return found

    @property
    def _is_few(self) -> bool:
        return len(self.task.y_train) < FEW

    def _best_moved(self, module: nn.Module, how: str) -> tuple[nn.Module, float]:
        """Return the module after steps, and their rate: the settled one for few images, or the best on held-out ones."""
        if self._is_few:
            return self._moved(module, how, SETTLED[how]), SETTLED[how]
        tried = [module, *(self._moved(module, how, rate) for rate in RATES[how])]
        told = [self._held_out_accuracy(x) for x in tried]
        best = told.index(max(told))
        return tried[best], (0.0, *RATES[how])[best]

    def _parts(self) -> tuple[Images, Images]:
        """Return the images that steps see, and the others, with their labels; few images are all seen."""
        x, y = self.task.x_train, self.task.y_train
        seen = len(y) if self._is_few else len(y) * (HELD_OUT - 1) // HELD_OUT
        return (x[:seen], y[:seen]), (x[seen:], y[seen:])

    def _moved(self, module: nn.Module, how: str, rate: float) -> nn.Module:
        """Return the module after steps of Adam on latents, on weights, or on relative weights."""
        found, rng = self._ready(_fast(copy_module(module))), self._rng()
        (x, y), _ = self._parts()
        options = RefineOptions(steps=STEPS, lr=rate)
        if how == "refined":
            try:
                refine(found, self.model, x, y, options, rng)
            except TaskError:  # it diverged, and is as it was
                return module
            return found
        groups = [
            {"params": [p], "lr": rate * (_spread(p) if "relative" in how else 1.0)}
            for p in found.parameters()
        ]
        optimizer = torch.optim.Adam(groups)
        found.train()
        for _ in range(STEPS):
            rows = torch.randint(len(y), (options.batch,), generator=rng)
            optimizer.zero_grad()
            cross_entropy(found(x[rows]), y[rows]).backward()
            optimizer.step()
        return found

    def _held_out_accuracy(self, module: nn.Module) -> float:
        """Return how often the classifier that is fitted to the images that steps see is right on the others."""
        found = _fast(copy_module(module))
        (x, y), held_out = self._parts()
        condition(found, x, 16, BATCH, self._rng())
        layer = find_classifier(found, x[:2])
        assert layer is not None
        fit_classifier(found, layer, x, y)
        return accuracy(found, *held_out)

    def _as_base(self, module: nn.Module) -> dict[str, Any]:
        """Measure a module that others are compared with."""
        kept = copy_module(module)
        self._base = {k: x.detach().clone() for k, x in kept.named_parameters()}
        self._base_wrong = self._answers(self._ready(kept))
        return self._run(module)

    @torch.no_grad()
    def _answers(self, module: nn.Module) -> torch.Tensor:
        module.eval()
        return torch.cat([module(x).argmax(1) for x in self.task.x_test.split(250)])

    def _run(self, module: nn.Module) -> dict[str, Any]:
        """Return what a network is worth before and after training, and how new it is."""
        module = _fast(copy_module(module))
        layer = find_classifier(module, self.task.x_train[:2])
        own = {id(p) for p in layer.parameters()} if layer is not None else set()
        learnt = [(k, p) for k, p in module.named_parameters() if id(p) not in own]
        moved = sum(float((p.detach() - self._base[k]).square().sum()) for k, p in learnt)
        size = sum(float(self._base[k].square().sum()) for k, _ in learnt)
        loss = self._loss(module)
        answers, truth = self._answers(module), self.task.y_test
        wrong = (self._base_wrong != truth) & (answers != truth)
        repeated = float((answers == self._base_wrong)[wrong].sum()) / max(
            1, int((answers != truth).sum())
        )
        before = accuracy(module, self.task.x_test, truth)
        after = self._trained(module)
        return {
            "before": before,
            "after": after,
            "loss": loss,
            "distance": (moved / size) ** 0.5,
            "wrong_repeated": repeated,
        }

    def _trained(self, module: nn.Module) -> float:
        torch.manual_seed(self.seed)
        optimizer = torch.optim.AdamW(module.parameters(), LR)
        images = len(self.task.y_train)
        epochs = ceil(TRAINED / ceil(images / BATCH))
        steps = epochs * ceil(images / BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
        module.train()
        rng = self._rng()
        for rows in (
            r for _ in range(epochs) for r in torch.randperm(images, generator=rng).split(BATCH)
        ):
            optimizer.zero_grad()
            cross_entropy(module(self.task.x_train[rows]), self.task.y_train[rows]).backward()
            optimizer.step()
            schedule.step()
        condition(module, self.task.x_train, 16, BATCH, self._rng())
        return accuracy(module, self.task.x_test, self.task.y_test)


def _fast(module: nn.Module) -> nn.Module:
    """Lay a network's weights out as CPUs convolve fastest, in place."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def noised(tensor: torch.Tensor, other: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Return a tensor with Gaussian noise, as far from it as the other one is."""
    noise = torch.randn(tensor.shape, generator=rng)
    return tensor + noise * (float((other - tensor).norm()) / max(1e-12, float(noise.norm())))


def _spread(tensor: torch.Tensor) -> float:
    """Return the deviation of a tensor's values; of one that has none, their size."""
    deviation = float(tensor.detach().std(correction=0))
    return deviation or float(tensor.detach().abs().mean()) or 1e-3


@torch.no_grad()
def _gaussian_like(module: nn.Module, keys: list[str], rng: torch.Generator) -> nn.Module:
    """Return the module with tensors drawn anew, of the mean and deviation that they have."""
    found = copy_module(module)
    values = dict(found.named_parameters())
    for key in keys:
        x = values[key]
        deviation = x.std() if x.numel() > 1 else torch.zeros(())
        x.copy_(x.mean() + deviation * torch.randn(x.shape, generator=rng))
    return found
