"""The claims of the SANE paper, at the size of two cores: are networks that are sampled ahead of training from scratch?

    python benchmarks/paper.py --data ../shared/data [--zoos runs/zoos] [--sane FILE] [--report]

The zoo is mnist-resnet: ResNet-8 of eight channels on MNIST of 16 pixels. Prompts are its five best
ReLU networks at their last epoch. A network is sampled near one of them in latents (KDE, the bandwidth that ships) and decoded; statistics are measured anew, and for another task the classifier is a fresh one, as published. It is then
trained for 25 epochs beside a network from scratch, the prompt itself, and the prompt with Gaussian noise that is, tensor by
tensor, as large as the distance of the sampled network. Deeper and wider targets take their layers as
docs/explanation/sane.md, sections 11.2 and 11.3, say. Runs lie in runs/paper and are not repeated; `--report` writes
paper.json and paper.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoodata
from learned_prior_runs import noised
from torch import nn
from zoodata import RESULTS, RUNS

from sane_plugins.architectures import resnet
from sane_plugins.autoencoder import SANE, fingerprint
from sane_plugins.generation import KDE, Transfer, plan_transfer
from sane_plugins.grafting import condition, find_classifier
from sane_plugins.initialize import TrainOptions, train_epochs
from sane_plugins.runtime import seeded
from sane_plugins.tasks import Task, accuracy, load_task
from sane_plugins.weights import WeightGraph, from_module, load_into
from sane_plugins.zoo import Zoo

ZOO, SIZE, PROMPTS = "mnist-resnet", 16, 5
EPOCHS, SEEDS = 25, 3
TOLD = (0, 1, 2, 5, 10, 25)
SCRATCH, SAMPLED, PROMPT, NOISE = "scratch", "sampled", "prompt", "prompt and noise"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A claim: what is trained, on how many images of which data set, and whether the classifier is lent too."""

    claim: str
    dataset: str
    images: int
    depth: int = 8
    width: int = 8
    lends_classifier: bool = False


CASES = (
    Case(claim="the zoo's task", dataset="mnist", images=2000, lends_classifier=True),
    Case(claim="another task", dataset="fashion_mnist", images=2000),
    Case(
        claim="deeper, the zoo's task",
        dataset="mnist",
        images=2000,
        depth=14,
        lends_classifier=True,
    ),
    Case(claim="wider, another task", dataset="fashion_mnist", images=2000, width=16),
    Case(claim="10 images a class, another task", dataset="fashion_mnist", images=100),
    Case(
        claim="5 images a class, the zoo's task", dataset="mnist", images=50, lends_classifier=True
    ),
)


def main() -> None:
    """Run what is missing, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--zoos", type=Path, default=RUNS / "zoos")
    parser.add_argument("--sane", type=Path, help="a SANE file; the embedded one by default")
    parser.add_argument("--report", action="store_true", help="of what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = zoodata.sane(arguments.sane)
    folder = RUNS / "paper" / fingerprint(model)[:12]
    folder.mkdir(parents=True, exist_ok=True)
    zoo = zoodata.zoos(arguments.data, arguments.zoos, [ZOO])[0]
    for seed in [] if arguments.report else range(SEEDS):
        for number, case in enumerate(CASES):
            path = folder / f"{number}-{seed}.json"
            if not path.exists():
                started = time.monotonic()
                task = load_task(arguments.data / "datasets" / f"{case.dataset}.npz", SIZE)
                curves = dict(_curves(model, zoo, case, task, seed))
                path.write_text(json.dumps({"claim": case.claim, "seed": seed, "curves": curves}))
                told = {name: f"{x[0]:.2f}/{x[1]:.2f}/{x[-1]:.2f}" for name, x in curves.items()}
                _say(f"{path.stem} {case.claim} {time.monotonic() - started:.0f} s {told}")
    result = {
        "sane": fingerprint(model),
        "cases": [asdict(case) for case in CASES],
        "runs": [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))],
    }
    (RESULTS / "paper.json").write_text(json.dumps(result) + "\n")
    (RESULTS / "paper.md").write_text(tables(result) + "\n")
    print(tables(result))


def _curves(
    model: SANE, zoo: Zoo, case: Case, task: Task, seed: int
) -> Iterator[tuple[str, list[float]]]:
    """Yield the test accuracy before training and after each epoch, of each way to begin."""
    task = task.subset(case.images, torch.Generator().manual_seed(seed))
    fresh = _fresh(case, task, seed)
    target, layer = from_module(fresh), find_classifier(fresh, task.x_train[:2])
    assert layer is not None
    own = {id(p) for p in layer.parameters()}
    classifier = frozenset(key for key, p in fresh.named_parameters() if id(p) in own)
    kept = frozenset() if case.lends_classifier else classifier
    rng = torch.Generator().manual_seed(seed)
    transfer = plan_transfer(list(_prompts(zoo)), target, kept, model, rng)
    for name, tensors in _beginnings(transfer, target, seed).items():
        module = _fresh(case, task, seed)
        load_into(module, target.replace(tensors))
        if name != SCRATCH:
            condition(module, task.x_train, 30, 64, torch.Generator().manual_seed(0))
        begun = accuracy(module, task.x_test, task.y_test)
        order = torch.Generator().manual_seed(seed)
        yield name, [begun, *train_epochs(module, task, EPOCHS, TrainOptions(), order)]


def _fresh(case: Case, task: Task, seed: int) -> nn.Module:
    with seeded(torch.Generator().manual_seed(seed)):
        return resnet(
            channels_in=task.channels,
            classes=len(task.classes),
            depth=case.depth,
            width=case.width,
        )


def _prompts(zoo: Zoo) -> Iterator[WeightGraph]:
    """Yield the best networks of the activation that a new one has, at their last epoch."""
    last = max(float(entry.properties["epoch"]) for entry in zoo.entries)
    alike = zoo.where(lambda x: x.properties["act"] == "relu" and x.properties["epoch"] == last)
    best = alike.best("test_accuracy", PROMPTS)
    yield from (best.graph(entry) for entry in best.entries)


def _beginnings(
    transfer: Transfer, target: WeightGraph, seed: int
) -> Mapping[str, Mapping[str, torch.Tensor]]:
    """Return the tensors of the target that each way to begin sets."""
    rng = torch.Generator().manual_seed(seed)
    number = seed % len(transfer.prompts)
    near = [(number + i) % len(transfer.prompts) for i in range(transfer.prompts_per_network)]
    latents = torch.cat([KDE()(transfer.prompts[i : i + 1], 1, rng) for i in near])
    sampled, prompt = transfer.weights(latents, target), transfer.direct(number, target)
    return {
        SCRATCH: {},
        SAMPLED: sampled,
        PROMPT: prompt,
        NOISE: {key: noised(x, sampled[key], rng) for key, x in prompt.items()},
    }


def tables(result: Mapping[str, Any]) -> str:
    """Return a table of accuracies for each claim, and whether it holds, as markdown."""
    lines: list[str] = []
    for case in result["cases"]:
        runs = [run["curves"] for run in result["runs"] if run["claim"] == case["claim"]]
        if not runs:
            continue
        lines += [
            f"**{case['claim'].capitalize()}** ({case['dataset']}, {case['images']} images, "
            f"ResNet-{case['depth']} of {case['width']} channels, {len(runs)} seeds)",
            "",
            "| begun from | " + " | ".join(f"epoch {e}" for e in TOLD) + " | ahead of scratch |",
            "|---" * (len(TOLD) + 2) + "|",
        ]
        for name in runs[0]:
            each = np.array([curves[name] for curves in runs])
            cells = [_mean(each[:, epoch]) for epoch in TOLD]
            lines.append(f"| {name} | {' | '.join(cells)} | {_lead(runs, name)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _mean(values: np.ndarray) -> str:
    return (
        f"{values.mean():.3f} ± {values.std(ddof=1):.3f}" if len(values) > 1 else f"{values[0]:.3f}"
    )


def _lead(runs: Sequence[Mapping[str, list[float]]], name: str) -> str:
    """Return up to which epoch a way is ahead of training from scratch beyond two standard errors, each epoch."""
    if name == SCRATCH or len(runs) < 2:
        return ""
    gains = np.array([np.subtract(curves[name], curves[SCRATCH]) for curves in runs])
    error = gains.std(axis=0, ddof=1) / len(runs) ** 0.5
    behind = np.flatnonzero(gains.mean(axis=0) <= 2 * error)
    if not len(behind):
        return f"to epoch {EPOCHS}, the last"
    return f"to epoch {behind[0] - 1}" if behind[0] else "not before training"


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
