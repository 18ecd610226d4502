"""Runs that tell whether generated weights helped: each a network, a task, and prompts good or bad.

`gate.py` measures the gate with them, `tools/release/fit_gate.py` fits it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoodata
from torch import nn

from sane_plugins.architectures import mlp, small_cnn, wide_cnn
from sane_plugins.autoencoder import SANE, embedded_sane
from sane_plugins.generation import choose_prompts
from sane_plugins.initialize import InitializeOptions, TrainOptions, train_epochs
from sane_plugins.initialize.benefit import ORDERS, best_of_both, counted, margins, mcnemar
from sane_plugins.initialize.budget import Budget
from sane_plugins.initialize.candidates import fitting_threads
from sane_plugins.initialize.pipeline import prepare
from sane_plugins.initialize.search import search
from sane_plugins.initialize.successive_halving import race
from sane_plugins.progress import silent
from sane_plugins.runtime import seeded
from sane_plugins.tasks import Task, load_task
from sane_plugins.weights import WeightGraph, from_module
from sane_plugins.zoo import Zoo

NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "small_cnn": small_cnn,
    "tanh": partial(small_cnn, act="tanh"),
    "wide_cnn": wide_cnn,
    "mlp": mlp,
}
PROMPTS = ("trained", "barely trained", "untrained", "shuffled")
TRAININGS = 6  # orders of images that tell what is true


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One run."""

    dataset: str
    network: str
    prompts: str
    images: int
    seed: int

    @property
    def name(self) -> str:
        """Return the run's file name."""
        return f"{self.dataset}-{self.network}-{self.prompts}-{self.images}-{self.seed}".replace(
            " ", "-"
        )


def specs(datasets: tuple[str, ...], images: tuple[int, ...], seed: int) -> Iterator[Spec]:
    """Yield every network with every kind of prompt on every data set, sizes in turn."""
    for i, (dataset, network, prompts) in enumerate(product(datasets, NETWORKS, PROMPTS)):
        size = images[(i + i // len(PROMPTS)) % len(images)]
        yield Spec(dataset=dataset, network=network, prompts=prompts, images=size, seed=seed + i)


FITTING = tuple(specs(("animal_mnist", "usps", "grey", "digits"), (400, 3000), 0))


def prompt_zoos(data: Path, trained: Path) -> list[Zoo]:
    """Return the zoos of prompts, published and trained here."""
    zoos = zoodata.zoos(data, trained)
    return [zoo for zoo in zoos if zoo.name in ("mnist-cnn", "animals-cnn", "mnist-mlp")]


def measured(some: Iterable[Spec], data: Path, zoos: list[Zoo]) -> list[dict[str, Any]]:
    """Return what these runs found with the shipped SANE."""
    sane = embedded_sane()
    return [kept(spec, data, zoos, sane) for spec in some]


def kept(spec: Spec, data: Path, zoos: list[Zoo], sane: SANE) -> dict[str, Any]:
    """Return what a run found, made now where it is not kept in runs/."""
    path = zoodata.RUNS / "gate" / f"{spec.name}.json"
    if not path.exists():
        task = task_of(spec.dataset, data)
        task = task.subset(spec.images, torch.Generator().manual_seed(spec.seed))
        found = _run(spec, task, _prompts(spec, zoos), sane)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
        print(f"{spec.name}: {found}", file=sys.stderr, flush=True)
    return {"dataset": spec.dataset, **json.loads(path.read_text())}


def features(runs: list[dict[str, Any]], name: str) -> Any:
    """Return what the gate reads of every run, (runs x features), float64."""
    found = {
        "won": [[1.0 if run["won"] else -1.0] for run in runs],
        "race": [run["margins"] for run in runs],
        "paired": [[mcnemar(run["counts"])] for run in runs],
    }
    parts = {"folds": ("won", "paired"), "all": ("race", "paired")}.get(name, (name,))
    return np.hstack([found[part] for part in parts])


def helped(runs: list[dict[str, Any]]) -> Any:
    """Return whether generated weights beat the default on test images, (runs,), bool."""
    return np.array([run["gain"] > 0 for run in runs])


def task_of(dataset: str, data: Path) -> Task:
    """Return a data set at 28 pixels; `grey` is CIFAR-10 without its colours."""
    if dataset == "digits":
        task = load_task("digits", 28)
    elif dataset == "grey":
        task = load_task(data / "datasets" / "cifar10.npz")
        gray = (x.mean(1, keepdim=True) for x in (task.x_train, task.x_test))
        x_train, x_test = gray
        task = replace(task, x_train=x_train, x_test=x_test).resized(28)
    else:
        task = load_task(data / "datasets" / f"{dataset}.npz", 28)
    return _mixed(task) if dataset.startswith("pneumonia") else task


def _mixed(task: Task) -> Task:
    """Mix training and test images; as many as before are test images."""
    x, y = torch.cat([task.x_train, task.x_test]), torch.cat([task.y_train, task.y_test])
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order.split([len(task.y_train), len(task.y_test)])
    return replace(task, x_train=x[train], y_train=y[train], x_test=x[test], y_test=y[test])


def _prompts(spec: Spec, zoos: list[Zoo]) -> list[WeightGraph]:
    """Return prompts of zoos on other data sets, spoilt as the run asks."""
    target = NETWORKS[spec.network](1, 10)
    left_out = {"animal_mnist": "animals-cnn", "mnist": "mnist"}.get(spec.dataset, "none")
    fit = [zoo for zoo in zoos if not zoo.name.startswith(left_out)]
    fit = [zoo for zoo in fit if zoo.name.endswith("mlp") == (spec.network == "mlp")] or fit
    if spec.prompts == "barely trained":
        fit = [zoo.where(lambda entry: float(entry.properties["epoch"]) <= 2) for zoo in fit]
    graphs = [graph for zoo in fit for graph in choose_prompts(target, zoo, 6).graphs]
    if spec.prompts == "untrained":
        torch.manual_seed(spec.seed)
        return [from_module(NETWORKS[spec.network](1, 10), f"untrained {i}") for i in range(6)]
    return (
        [_shuffled(graph, spec.seed) for graph in graphs] if spec.prompts == "shuffled" else graphs
    )


def _shuffled(graph: WeightGraph, seed: int) -> WeightGraph:
    rng = torch.Generator().manual_seed(seed)
    return graph.replace(
        {
            p.key: t.flatten()[torch.randperm(t.numel(), generator=rng)].view_as(t)
            for p, t in graph.items()
        }
    )


def _run(spec: Spec, task: Task, prompts: list[WeightGraph], sane: SANE) -> dict[str, Any]:
    make = partial(NETWORKS[spec.network], 1, len(task.classes))
    options = InitializeOptions(seed=spec.seed, candidates=8, keep=2)
    bench, fresh = prepare(make, task, prompts, sane, options)
    clock = Budget(None)
    with fitting_threads(make(), task):
        pool, _ = search(bench, fresh, clock, silent)
        raced = race(bench, pool.kept, clock, silent)
    images = len(bench.task.y_test)
    rivals = best_of_both(raced)
    assert rivals is not None
    counts = [counted(bench, *rivals, order, clock) for order in range(ORDERS)]
    with seeded(torch.Generator().manual_seed(spec.seed)):
        fresh_default = make()
    modules = (*(c.module for c in rivals), fresh_default)
    curves = [_trained(module, task, spec.seed) for module in modules]
    ours, plain, default = (float(np.mean(curve)) for curve in curves)
    return {
        "margins": margins([c.row for c in raced], images),
        "counts": counts,
        "gain": ours - plain,
        "gain_over_default": ours - default,
        "curves": curves,
        "won": raced[0] is rivals[0],
        "ours": rivals[0].row.name,
        "plain": rivals[1].row.name,
    }


def _trained(module: nn.Module, task: Task, seed: int) -> list[list[float]]:
    """Return the test accuracy after one and two epochs, for each order of images."""
    curves = []
    for order in range(TRAININGS):
        rng = torch.Generator().manual_seed(seed + 10_000 * order)
        curves.append(list(train_epochs(deepcopy(module), task, 2, TrainOptions(), rng)))
    return curves
