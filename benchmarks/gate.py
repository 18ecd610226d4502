"""Does the gate know when generated weights help?

    python benchmarks/gate.py --data ../shared/data [--stage fit] [--stage test]

A run: a network, a task, prompts good and bad (trained, barely trained, untrained, shuffled), few or many images. The
gate reads the scores of the race on held-out images; what is true is told by test images: does the best generated
candidate, after one and two epochs on all training images (mean), beat the default initialisation that the same race
prefers (classifier fitted or not)? It is fitted on runs on animals, USPS, grey CIFAR-10 and digits, and tested on
Fashion-MNIST, pneumonia and MNIST, with other seeds and sizes. A finished run is kept in runs/.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoodata
from sklearn.linear_model import LogisticRegression
from torch import nn

from sane_plugins.latent import checkpoint
from sane_plugins.latent.model import SANE
from sane_plugins.progress import silent
from sane_plugins.tasks.candidates import Candidate, InitialiseOptions, fitting_threads
from sane_plugins.tasks.clock import Clock
from sane_plugins.tasks.gate import Outlook, margins
from sane_plugins.tasks.halving import family, race
from sane_plugins.tasks.initialise import prepare
from sane_plugins.tasks.prompts import choose_prompts
from sane_plugins.tasks.search import search
from sane_plugins.tasks.task import Task, load_task
from sane_plugins.tasks.train import TrainOptions, train_epochs
from sane_plugins.weights.graph import WeightGraph
from sane_plugins.weights.modules import from_module
from sane_plugins.zoo.architectures import mlp, small_cnn, wide_cnn
from sane_plugins.zoo.store import Zoo

FIT = ("animal_mnist", "usps", "grey", "digits")
TEST = ("fashion_mnist", "pneumoniamnist_subset", "mnist")
NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "small_cnn": small_cnn, "tanh": partial(small_cnn, act="tanh"), "wide_cnn": wide_cnn, "mlp": mlp,
}  # fmt: skip
PROMPTS = ("trained", "barely trained", "untrained", "shuffled")
SHARE = 0.85
SHIPPED = Path(__file__).parents[1] / "sane_plugins" / "data" / "gate.json"


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


def main() -> None:
    """Run what is missing; fit on the one part, test on the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--zoos", type=Path, default=zoodata.RUNS / "zoos")
    parser.add_argument("--stage", choices=["fit", "test"], action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stages = arguments.stage or ["fit", "test"]
    zoos = zoodata.zoos(arguments.data, arguments.zoos)
    zoos = [zoo for zoo in zoos if zoo.name in ("mnist-cnn", "animals-cnn", "mnist-mlp")]
    sane = checkpoint.embedded()
    if "fit" in stages:
        _fit([_kept(s, arguments.data, zoos, sane) for s in _specs(FIT, (400, 3000), 0)])
    if "test" in stages:
        _test([_kept(s, arguments.data, zoos, sane) for s in _specs(TEST, (600, 4000), 1000)])


def _specs(datasets: tuple[str, ...], images: tuple[int, ...], seed: int) -> Iterator[Spec]:
    """Yield every network with every kind of prompt on every data set, sizes in turn."""
    for i, (dataset, network, prompts) in enumerate(product(datasets, NETWORKS, PROMPTS)):
        size = images[(i + i // len(PROMPTS)) % len(images)]
        yield Spec(dataset=dataset, network=network, prompts=prompts, images=size, seed=seed + i)


def _kept(spec: Spec, data: Path, zoos: list[Zoo], sane: SANE) -> dict[str, Any]:
    path = zoodata.RUNS / "gate" / f"{spec.name}.json"
    if not path.exists():
        found = _run(spec, _task(spec, data), _prompts(spec, zoos), sane)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
        print(f"{spec.name}: {found}", file=sys.stderr, flush=True)
    kept: dict[str, Any] = json.loads(path.read_text())
    return kept


def _task(spec: Spec, data: Path) -> Task:
    if spec.dataset == "digits":
        task = load_task("digits", 28)
    elif spec.dataset == "grey":
        task = load_task(data / "datasets" / "cifar10.npz")
        grey = (x.mean(1, keepdim=True) for x in (task.x_train, task.x_test))
        x_train, x_test = grey
        task = replace(task, x_train=x_train, x_test=x_test).resized(28)
    else:
        task = load_task(data / "datasets" / f"{spec.dataset}.npz", 28)
    return task.subset(spec.images, torch.Generator().manual_seed(spec.seed))


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
    options = InitialiseOptions(seed=spec.seed, candidates=8, keep=2)
    bench, fresh = prepare(make, task, prompts, sane, options)
    clock = Clock(None)
    with fitting_threads(make(), task):
        pool, _ = search(bench, fresh, clock, silent)
        raced = race(bench, pool.kept, clock, silent)
    images = len(bench.task.y_test)
    ours = next(c for c in raced if family(c.row.kind) != "default")
    plain = next(c for c in raced if family(c.row.kind) == "default")
    gain = _trained(ours, task, spec.seed) - _trained(plain, task, spec.seed)
    return {
        "margins": margins([c.row for c in raced], images), "gain": gain, "won": raced[0] is ours,
        "ours": ours.row.name, "plain": plain.row.name,
    }  # fmt: skip


def _trained(candidate: Candidate, task: Task, seed: int) -> float:
    module: nn.Module = candidate.module
    rng = torch.Generator().manual_seed(seed)
    return float(np.mean(list(train_epochs(module, task, 2, TrainOptions(), rng))))


def _fit(runs: list[dict[str, Any]]) -> None:
    x, y = _data(runs)
    model = LogisticRegression().fit(x, y)
    told = {
        "weights": model.coef_[0].round(6).tolist(), "bias": round(float(model.intercept_[0]), 6),
        "margins": ["before training", "after the last common epoch"], "runs": len(runs),
        "helped": int(y.sum()), "tasks": FIT,
    }  # fmt: skip
    SHIPPED.write_text(json.dumps(told, indent=1) + "\n")
    print(f"fitted on {len(runs)} runs, {y.sum()} of which were helped: {told}")


def _test(runs: list[dict[str, Any]]) -> None:
    told = json.loads(SHIPPED.read_text())
    x, y = _data(runs)
    chance = [
        Outlook(float(1 / (1 + np.exp(-(told["bias"] + row @ told["weights"]))))) for row in x
    ]
    said = np.array([found.helps for found in chance])
    won = np.array([run["won"] for run in runs])
    right = float((said == y).mean())
    halves = [float((said == y)[y == side].mean()) for side in (True, False)]
    brier = float(
        np.mean([(found.probability - truth) ** 2 for found, truth in zip(chance, y, strict=True)])
    )
    wrong = [abs(run["gain"]) for run, a, b in zip(runs, said, y, strict=True) if a != b]
    text = "\n".join([
        f"| {len(runs)} runs on {', '.join(TEST)} | |", "|---|---|",
        f"| generated weights helped | {y.mean():.3f} |",
        f"| gate right | {right:.3f} |",
        f"| gate right where they helped, where not | {halves[0]:.3f}, {halves[1]:.3f} |",
        f"| always saying the commoner answer | {max(y.mean(), 1 - y.mean()):.3f} |",
        f"| saying what won the race | {(won == y).mean():.3f} |",
        f"| Brier score | {brier:.3f} |",
        f"| largest gain or loss where it was wrong | {max(wrong, default=0):.3f} |", "",
        f"- {'met' if right >= SHARE else 'MISSED'}: the gate is right on {SHARE:.0%} of at least 40 runs", "",
    ])  # fmt: skip
    (zoodata.RESULTS / "gate.md").write_text(text)
    (zoodata.RESULTS / "gate.json").write_text(json.dumps({"gate": told, "test": runs}) + "\n")
    print(text)
    sys.exit(right < SHARE)


def _data(runs: list[dict[str, Any]]) -> tuple[Any, Any]:
    x = np.array([run["margins"] for run in runs])
    return x, np.array([run["gain"] > 0 for run in runs])


if __name__ == "__main__":
    main()
