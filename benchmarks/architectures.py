"""Do prompts of another architecture help?

    python benchmarks/architectures.py --data ../shared/data [--seeds 5] [--resnet-seeds 3]

The small CNN's prompts (mnist-cnn and animals-cnn, relu) initialize a CNN of twice its width on Fashion-MNIST (10,000
images); a published ResNet-20 for CIFAR-10 (91.5 %) initialises ResNet-32 and ResNet-56 on 2,000 CIFAR-10 images. Test
accuracy after 0, 1, 2 and, for the CNN, 5 epochs (Adam, 1e-3, batch 64). What `sane-init` chooses, it chooses on images
held out of the training images. A finished (case, seed) is kept in runs/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import zoodata
from torch import nn

from sane_plugins.architectures import resnet, small_cnn, wide_cnn
from sane_plugins.autoencoder import SANE, embedded_sane
from sane_plugins.generation import choose_prompts
from sane_plugins.initialize import InitializeOptions, TrainOptions, initialize, train_epochs
from sane_plugins.initialize.candidates import CandidateBuilder, CandidateSpec, Kind
from sane_plugins.initialize.problem import prepare
from sane_plugins.runtime import seeded
from sane_plugins.tasks import Task, accuracy, load_task
from sane_plugins.weights import WeightGraph, from_module

PUBLISHED = "checkpoints/akamaster_pytorch_resnet_cifar10/resnet20-12fca82f.th"
COMPARED = (1, 2)
Run = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A target, its task, and the prompts."""

    name: str
    make: Callable[[], nn.Module]
    task: Task
    prompts: Sequence[WeightGraph]
    options: InitializeOptions
    epochs: int


def main() -> None:
    """Measure every case with every seed; exit 1 where sane-init is not ahead after 1 and 2 epochs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--zoos", type=Path, default=zoodata.RUNS / "zoos")
    parser.add_argument("--dataset", default="fashion_mnist", help="for the wide CNN")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--resnet-seeds", type=int, default=3)
    arguments = parser.parse_args()
    sane = embedded_sane()
    for seed in range(arguments.seeds):
        _keep(f"wide-{arguments.dataset}", seed, partial(_wide, arguments, seed), sane)
    for seed in range(arguments.resnet_seeds):
        for depth in (32, 56):
            _keep(f"resnet-{depth}", seed, partial(_resnet, arguments.data, depth, seed), sane)
    _publish()


def _wide(arguments: argparse.Namespace, seed: int) -> Case:
    torch.set_num_threads(1)
    task = load_task(arguments.data / "datasets" / f"{arguments.dataset}.npz", 28)
    names = [name for name in ("mnist-cnn", "animals-cnn") if name[:6] not in arguments.dataset]
    zoos = zoodata.zoos(arguments.data, arguments.zoos, names)
    graphs = [graph for zoo in zoos for graph in choose_prompts(small_cnn(), zoo, 12).graphs]
    return Case(
        name="small CNN to twice its width",
        make=partial(wide_cnn, 1, len(task.classes)),
        task=task.subset(10_000, torch.Generator().manual_seed(seed)),
        prompts=graphs,
        options=InitializeOptions(seed=seed),
        epochs=5,
    )


def _resnet(data: Path, depth: int, seed: int) -> Case:
    task = load_task(data / "datasets" / "cifar10.npz")
    stored = torch.load(data / PUBLISHED, weights_only=True, map_location="cpu")["state_dict"]
    prompt = resnet(depth=20)
    prompt.load_state_dict({key.removeprefix("module."): value for key, value in stored.items()})
    return Case(
        name=f"ResNet-20 to ResNet-{depth}",
        make=partial(resnet, depth=depth),
        task=task.subset(2000, torch.Generator().manual_seed(seed)),
        prompts=[from_module(prompt, "resnet20")],
        options=InitializeOptions(seed=seed, candidates=2, keep=1, norm_batches=20),
        epochs=2,
    )


def _keep(name: str, seed: int, make: Callable[[], Case], sane: SANE) -> None:
    path = zoodata.RUNS / "architectures" / f"{name}-{seed}.json"
    if not path.exists():
        run = _measured(make(), seed, sane)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run))


def _measured(case: Case, seed: int, sane: SANE) -> Run:
    run: Run = {"case": case.name, "images": len(case.task.y_train), "curves": {}}
    methods: Mapping[str, Callable[[], nn.Module]] = {
        "default": partial(_default, case, seed),
        "prompt, expanded": partial(_expanded, case, sane),
        "sane-init": partial(_ours, case, sane, run),
    }
    for method, make in methods.items():
        start = time.perf_counter()
        module = make()
        seconds = time.perf_counter() - start
        curve = [accuracy(module, case.task.x_test, case.task.y_test)]
        rng = torch.Generator().manual_seed(seed)
        curve += train_epochs(module, case.task, case.epochs, TrainOptions(), rng)
        run["curves"][method] = curve
        told = [round(x, 3) for x in curve]
        print(f"{case.name} {seed} {method}: {told} {seconds:.0f} s", file=sys.stderr, flush=True)
    return run


def _default(case: Case, seed: int) -> nn.Module:
    with seeded(torch.Generator().manual_seed(seed)):
        return case.make()


def _expanded(case: Case, sane: SANE) -> nn.Module:
    problem = prepare(case.make, case.task, case.prompts, sane, case.options)
    return CandidateBuilder(problem).build(CandidateSpec(Kind.PROMPT)).module


def _ours(case: Case, sane: SANE, run: Run) -> nn.Module:
    found = initialize(case.make, case.task, case.prompts, sane, case.options)
    run["chosen"] = found.rows[0].name
    run["rows"] = [
        {"name": r.name, "kind": r.kind, "before": r.before, "curve": r.curve} for r in found.rows
    ]
    return found.module


def _publish() -> None:
    runs = [
        json.loads(path.read_text())
        for path in sorted((zoodata.RUNS / "architectures").glob("*.json"))
    ]
    lines: list[str] = []
    verdicts: list[str] = []
    for case in dict.fromkeys(run["case"] for run in runs):
        found = [run for run in runs if run["case"] == case]
        lines += _table(case, found)
        means = {m: _mean(found, m) for m in ("default", "sane-init")}
        ahead = [means["sane-init"][e] - means["default"][e] for e in COMPARED]
        told = " and ".join(f"{gain:+.3f}" for gain in ahead)
        verdicts.append(
            f"- {'met' if min(ahead) > 0 else 'MISSED'}: {case}, ahead of the default after 1 and 2 epochs ({told})"
        )
    text = "\n".join([*lines, *verdicts, ""])
    (zoodata.RESULTS / "architectures.md").write_text(text)
    (zoodata.RESULTS / "architectures.json").write_text(json.dumps(runs) + "\n")
    print(text)
    sys.exit(any("MISSED" in line for line in verdicts))


def _table(case: str, runs: Sequence[Run]) -> list[str]:
    epochs = [e for e in (0, 1, 2, 5) if e < len(runs[0]["curves"]["default"])]
    chosen = ", ".join(run["chosen"] for run in runs)
    lines = [
        f"{case} ({len(runs)} seeds, {runs[0]['images']} images; chosen: {chosen})",
        "",
        f"| initialisation | {' | '.join(f'epoch {e}' for e in epochs)} |",
        "|---" * (len(epochs) + 1) + "|",
    ]
    for method in runs[0]["curves"]:
        cells = [_cell([run["curves"][method][e] for run in runs]) for e in epochs]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return [*lines, ""]


def _mean(runs: Sequence[Run], method: str) -> list[float]:
    return [statistics.mean(x) for x in zip(*(run["curves"][method] for run in runs), strict=True)]


def _cell(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {spread:.3f}"


if __name__ == "__main__":
    main()
