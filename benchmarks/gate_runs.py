"""Runs that tell whether generated, or transferred, weights helped: each a network, a task, and prompts good or bad.

`gate.py` measures the gate with them, `tools/release/fit_gate.py` fits it. A run takes what `sane-init` takes at a rung,
asks the race, and then trains the best of each family and the best default on all images of the run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import zoodata
from gate_prompts import SMALL, files, spoilt, zoo_prompts
from hand_written_networks import gated_preactivation
from torch import nn

from sane_plugins.architectures import import_torchvision, resnet
from sane_plugins.autoencoder import SANE, embedded_sane
from sane_plugins.grafting import PromptNetwork, conditioned, lead, transfer_methods
from sane_plugins.initialize import InitializeOptions, TrainOptions, train_epochs
from sane_plugins.initialize.budget import Budget, Stage
from sane_plugins.initialize.candidates import Candidate, CandidateBuilder
from sane_plugins.initialize.kinds import CandidateScore, CandidateSpec, Family, Kind, Statistics
from sane_plugins.initialize.outcome.benefit import (
    FORECAST_FAMILIES,
    best_rivals,
    common_best,
    count_discordant,
    standardized_margin,
)
from sane_plugins.initialize.pipeline import planned
from sane_plugins.initialize.problem import InitializationProblem, set_up
from sane_plugins.initialize.search import SearchResult, search
from sane_plugins.initialize.successive_halving import race
from sane_plugins.progress import silent
from sane_plugins.runtime import threads_for
from sane_plugins.tasks import Task, accuracy, load_task
from sane_plugins.zoo import Zoo

PUBLISHED = zoodata.RESULTS / "gate_runs.json"
PROMPTS = ("trained", "barely trained", "untrained", "shuffled")
SMALL_TRAININGS, REAL_TRAININGS = 6, 2  # orders of images that tell what is true
FOLD_ORDERS = 2
Run = dict[str, Any]


def _torchvision(name: str) -> Callable[..., nn.Module]:
    """Return a function that builds a network of torchvision without weights."""

    def build(_: int, classes: int) -> nn.Module:
        models = import_torchvision().models
        made: nn.Module = models.get_model(name, weights=None, num_classes=classes)
        return made

    return build


# Real architectures, and the size of their images in pixels.
REAL: Mapping[str, tuple[Callable[..., nn.Module], int]] = {
    "resnet18": (_torchvision("resnet18"), 32),
    "regnet_y_400mf": (_torchvision("regnet_y_400mf"), 64),
    "shufflenet_v2_x1_0": (_torchvision("shufflenet_v2_x1_0"), 64),
    "mobilenet_v2": (_torchvision("mobilenet_v2"), 64),
    "mobilenet_v3_small": (_torchvision("mobilenet_v3_small"), 64),
    "resnet_32": (lambda _, classes: resnet(classes=classes, depth=32), 32),
    "gated": (lambda _, classes: gated_preactivation(classes), 64),
}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One run; `file` is the prompt of a real network."""

    dataset: str
    network: str
    prompts: str
    images: int
    seed: int
    file: str = ""

    @property
    def name(self) -> str:
        """Return the run's file name."""
        parts = (self.dataset, self.network, self.file, self.prompts, self.images, self.seed)
        return "-".join(str(part) for part in parts if part != "").replace(" ", "-")

    @property
    def is_real(self) -> bool:
        """Return whether the network is of an architecture that people use."""
        return self.network in REAL


def small_specs(
    datasets: Sequence[str], images: Sequence[int], seed: int, kinds: int = 4
) -> Iterator[Spec]:
    """Yield small networks with so many kinds of prompts in turn on every data set, sizes in turn."""
    for i, (dataset, network, k) in enumerate(product(datasets, SMALL, range(kinds))):
        prompts = PROMPTS[(k * 4 // kinds + i // kinds) % 4]
        size = images[(i + i // kinds) % len(images)]
        yield Spec(dataset=dataset, network=network, prompts=prompts, images=size, seed=seed + i)


def real_specs(datasets: Sequence[str], seed: int) -> Iterator[Spec]:
    """Yield every real network with a trained and a spoilt file on every data set, files in turn."""
    kinds = ("trained", "untrained", "trained", "shuffled")
    for i, (dataset, network, k) in enumerate(product(datasets, REAL, range(2))):
        spec = Spec(dataset=dataset, network=network, prompts="", images=1600, seed=seed + i)
        kind = kinds[(2 * (i // 2) + k) % 4]
        yield replace(spec, prompts=kind, file=("lite0", "resnet20")[(i // 2 + k) % 2])


SETTLING = (
    *small_specs(("animal_mnist", "usps", "grey", "digits"), (400, 3000), 0),
    *real_specs(("photos10b", "cifar10", "fashion_mnist"), 5000),
)
UNSEEN = (
    *small_specs(("fashion_mnist", "pneumoniamnist_subset", "mnist"), (800, 3500), 2000, kinds=2),
    *real_specs(("photos10", "pneumoniamnist_subset", "animal_mnist"), 7000),
)


def measured(some: Iterable[Spec], data: Path, trained: Path) -> list[Run]:
    """Return a case for each family of these runs, with the shipped SANE; of a silent run, one without a forecast."""
    sane, zoos = (
        embedded_sane(),
        zoodata.zoos(data, trained, ["mnist-cnn", "animals-cnn", "mnist-mlp"]),
    )
    cases = []
    for spec in some:
        run = _kept(spec, data, zoos, sane)
        about = {"run": spec.name, "dataset": spec.dataset, "real": spec.is_real}
        cases += [{**about, **case} for case in run["families"]] or [{**about, "family": None}]
    return cases


def publish() -> int:
    """Write all runs that there are to the results, from which another machine goes on; return how many."""
    kept = {spec.name: _path(spec) for spec in (*SETTLING, *UNSEEN)}
    runs = {name: json.loads(path.read_text()) for name, path in kept.items() if path.exists()}
    lines = [f"{json.dumps(name)}: {json.dumps(run)}" for name, run in runs.items()]
    PUBLISHED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return len(runs)


def restore() -> None:
    """Write the runs that were published to runs/, where it lacks them."""
    runs = json.loads(PUBLISHED.read_text()) if PUBLISHED.exists() else {}
    for spec in (*SETTLING, *UNSEEN):
        path = _path(spec)
        if spec.name in runs and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(runs[spec.name]))


def _path(spec: Spec) -> Path:
    return zoodata.RUNS / "gate-families" / f"{spec.name}.json"


def _kept(spec: Spec, data: Path, zoos: list[Zoo], sane: SANE) -> Run:
    """Return what a run found, made now where it is not kept in runs/."""
    path = _path(spec)
    if not path.exists():
        run = _run(spec, _task_of(spec, data), data, zoos, sane)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run))
        print(f"{spec.name}: {run}", file=sys.stderr, flush=True)
    found: Run = json.loads(path.read_text())
    return found


def images_of(dataset: str, size: int, data: Path) -> Task:
    """Return the images of a data set at a size in pixels; `grey` is CIFAR-10 without its colours."""
    if dataset == "digits":
        return load_task("digits", size)
    if dataset == "grey":
        task = load_task(data / "datasets" / "cifar10.npz")
        x_train, x_test = (x.mean(1, keepdim=True) for x in (task.x_train, task.x_test))
        grey = replace(task, x_train=x_train, x_test=x_test, pixel_mean=(), pixel_deviation=())
        return grey.resized(size)
    return load_task(data / "datasets" / f"{dataset}.npz", size)


def _task_of(spec: Spec, data: Path) -> Task:
    """Return the images of a run; real networks see three channels."""
    task = images_of(spec.dataset, REAL[spec.network][1] if spec.is_real else 28, data)
    if spec.dataset.startswith("pneumonia"):
        task = _mixed(task)
    if spec.is_real and task.channels == 1:
        task = task.repeated(3)
    few = torch.randperm(len(task.y_test), generator=torch.Generator().manual_seed(0))[:2000]
    task = replace(task, x_test=task.x_test[few], y_test=task.y_test[few])
    return task.subset(spec.images, torch.Generator().manual_seed(spec.seed))


def _mixed(task: Task) -> Task:
    """Mix training and test images, which come from two sources; as many as before are test images."""
    x, y = torch.cat([task.x_train, task.x_test]), torch.cat([task.y_train, task.y_test])
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order.split([len(task.y_train), len(task.y_test)])
    return replace(task, x_train=x[train], y_train=y[train], x_test=x[test], y_test=y[test])


def _run(spec: Spec, task: Task, data: Path, zoos: list[Zoo], sane: SANE) -> Run:
    make: Callable[..., nn.Module] = REAL[spec.network][0] if spec.is_real else SMALL[spec.network]
    build = partial(make, task.channels, len(task.classes))
    graphs = [] if spec.is_real else zoo_prompts(spec, zoos)
    networks: list[PromptNetwork] = []
    if spec.is_real:
        networks = [spoilt(files(data)[spec.file], spec.prompts, spec.seed)]
        graphs = [network.graph for network in networks]
    # A real network gets about what 45 s on two cores allow, a small one all of the work.
    rung = 3 if spec.is_real else 0
    options = InitializeOptions(seed=spec.seed, candidates=8, keep=2, rung=rung)
    problem = set_up(
        build, task, graphs, sane, options, networks, transfer_methods() if spec.is_real else {}
    )
    budget = Budget(None)
    with threads_for(problem.flops):
        plan, problem = planned(problem, options, silent)
        found = search(problem, plan, budget, silent)
        raced = race(problem, plan, found.board.kept, budget, silent).candidates
    truth: dict[int, list[list[float]]] = {}
    families = []
    for family in FORECAST_FAMILIES:
        rivals = best_rivals(raced, family, problem.fits_classifier)
        if rivals is None:
            continue
        stage, orders = Stage(budget.end()), range(FOLD_ORDERS if plan.fold_orders else 0)
        for candidate in rivals:
            if id(candidate.module) not in truth:
                truth[id(candidate.module)] = _trained(spec, candidate, task)
        ours, plain = (float(np.mean(truth[id(c.module)])) for c in rivals)
        families.append(
            {
                "family": family,
                "dropped": False,
                "margins": _margins(rivals[0].score, rivals[1].score, plan.held_out),
                "discordant": _discordant(*rivals),
                "ranking": _ranking(*rivals),
                "counts": [count_discordant(problem, *rivals, order, stage) for order in orders],
                "ahead": _is_ahead(rivals[0].score, rivals[1].score),
                "gain": ours - plain,
                "ours": rivals[0].score.name,
                "plain": rivals[1].score.name,
                "curves": [truth[id(c.module)] for c in rivals],
            }
        )
    if not any(case["family"] == Family.TRANSFER for case in families):
        families += _of_dropped(spec, task, problem, found, raced)
    return {"rung": plan.rung, "chosen": raced[0].score.name, "families": families}


def _of_dropped(
    spec: Spec,
    task: Task,
    problem: InitializationProblem,
    found: SearchResult,
    raced: Sequence[Candidate],
) -> list[Run]:
    """Return the case of a transfer that was not trained, because it did not lead: of it the answer is no."""
    dropped = [x for x in found.board.dropped if x.kind is Kind.TRANSFER]
    defaults = [c for c in raced if c.spec.kind.family is Family.DEFAULT and c.score.curve]
    if not dropped or not defaults:
        return []
    best = min(dropped, key=lambda score: score.loo_loss or 0.0)
    specs = (
        replace(CandidateSpec(Kind.TRANSFER, method=name), statistics=statistics)
        for name in problem.transfer_names
        for statistics in get_args(Statistics)
    )
    recipe = next(x for x in specs if x.name(problem) == best.name)
    ours = Candidate(CandidateBuilder(problem).build(recipe), best)
    plain = max(defaults, key=lambda c: c.score.last or 0.0)
    curves = [_trained(spec, candidate, task) for candidate in (ours, plain)]
    gain = float(np.mean(curves[0]) - np.mean(curves[1]))
    told = {"family": Family.TRANSFER, "dropped": True, "gain": gain, "ahead": False, "counts": []}
    return [{**told, "ours": best.name, "plain": plain.score.name, "curves": curves}]


def _margins(ours: CandidateScore, plain: CandidateScore, images: int) -> tuple[float, float]:
    """Return the margins of the race before training, and of what both reached."""
    before = standardized_margin(ours.before or 0.0, plain.before or 0.0, images)
    return before, standardized_margin(*common_best(ours, plain), images)


def _is_ahead(ours: CandidateScore, plain: CandidateScore) -> bool:
    """Return whether ours was trained longer, or was more accurate after as long."""
    if len(ours.curve) != len(plain.curve):
        return len(ours.curve) > len(plain.curve)
    mine, others = common_best(ours, plain)
    return mine > others


def _ranking(ours: Candidate, plain: Candidate) -> float:
    """Return the lead before training in standard errors; 0 where one was not ranked."""
    if ours.losses is None or plain.losses is None:
        return 0.0
    return lead(ours.losses, plain.losses)


def _discordant(ours: Candidate, plain: Candidate) -> tuple[int, int]:
    """Return how many held-out images the one alone has right after as long a training, and the other alone."""
    if (
        ours.answers is None
        or plain.answers is None
        or len(ours.score.curve) != len(plain.score.curve)
    ):
        return 0, 0
    return (
        int((ours.answers & ~plain.answers).sum()),
        int((plain.answers & ~ours.answers).sum()),
    )


def _trained(spec: Spec, candidate: Candidate, task: Task) -> list[list[float]]:
    """Return the test accuracy after one and two epochs, statistics measured anew, for each order of images."""
    curves = []
    for order in range(REAL_TRAININGS if spec.is_real else SMALL_TRAININGS):
        module, curve = deepcopy(candidate.module), []
        for epoch in range(2):
            rng = torch.Generator().manual_seed(spec.seed + 10_000 * order + epoch)
            train_epochs(module, task, 1, TrainOptions(), rng)
            with conditioned(module, task.x_train, 8, 64):
                curve.append(accuracy(module, task.x_test, task.y_test))
        curves.append(curve)
    return curves
