"""Which channels to remove? Importances of `sane_torch_pruning` beside magnitude, batch-norm scale and random.

    python benchmarks/importances.py --data ../shared/data [--seeds 1]

Published CIFAR-10 ResNets lose half of the channels between the two convolutions of each block (Torch-Pruning), chosen by
each importance, on two tasks: CIFAR-10, and photos10 at 32 pixels, for which a classifier is fitted. Importances that read
images see 64 of them (the border, 500). Then batch norm is measured anew and the classifier fitted on 500 training
images; nothing is trained. Accuracy on 500 test images: a difference of less than 4 points in one row is noise, so the
mean over all rows is told with its paired standard error. Rows that are done, or in the results, are not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch_pruning
import zoodata
from pruned_channels import DEVIATION, MEAN, pruned_network
from sane_torch_pruning import border_scores, channel_importance, fisher_scores, latent_scores
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import sane_plugins
from sane_plugins.architectures import resnet
from sane_plugins.grafting import condition, find_classifier, fit_classifier
from sane_plugins.tasks import Task, accuracy, load_task
from sane_plugins.weights import load_into

FOLDER = "checkpoints/akamaster_pytorch_resnet_cifar10"
NETWORKS = {20: "resnet20-12fca82f.th", 32: "resnet32-d509ac18.th", 56: "resnet56-4bfd9763.th"}
TASKS = ("cifar10", "photos10")
IMAGES, FEW = 500, 64
MAGNITUDE = "magnitude"
Choose = Callable[[nn.Module, Task], Any]
Key = tuple[Any, ...]
"""Depth of the network, name of the task, seed."""
IMPORTANCES: Mapping[str, Choose] = {
    MAGNITUDE: lambda _m, _t: torch_pruning.importance.MagnitudeImportance(p=2),
    "batch-norm scale": lambda _m, _t: torch_pruning.importance.MagnitudeImportance(
        p=1, normalizer=None, target_types=[_BatchNorm]
    ),
    "random": lambda _m, _t: torch_pruning.importance.RandomImportance(),
    "SANE latents": lambda m, _t: channel_importance(latent_scores(m), are_written=True),
    "Fisher": lambda m, task: channel_importance(
        fisher_scores(m, task.x_train[:FEW], task.y_train[:FEW])
    ),
    "learned with a border": lambda m, task: channel_importance(
        border_scores(m, task.x_train, task.y_train)
    ),
}


def main() -> None:
    """Measure what is not measured yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--kept", type=Path, default=zoodata.RUNS / "importances.jsonl")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.kept.parent.mkdir(parents=True, exist_ok=True)
    rows = _published()
    lines = arguments.kept.read_text().splitlines() if arguments.kept.exists() else []
    rows |= {tuple(key): found for key, found in map(json.loads, lines)}
    host = sane_plugins.Host.installed()
    for seed in range(arguments.seeds):
        for depth, file in NETWORKS.items():
            for name in TASKS:
                key = (depth, name, seed)
                if key in rows:
                    continue
                module = resnet(depth=depth)
                load_into(module, host.open(str(arguments.data / FOLDER / file)))
                rows[key] = _measured(module.eval(), arguments.data, name, seed)
                with arguments.kept.open("a") as kept:
                    kept.write(json.dumps([key, rows[key]]) + "\n")
                print(key, rows[key], file=sys.stderr, flush=True)
                _write(rows)
    print(_write(rows))


def _published() -> dict[Key, dict[str, float]]:
    """Return the rows of the results, by network, task and seed."""
    path = zoodata.RESULTS / "importances.json"
    runs = json.loads(path.read_text()) if path.exists() else []
    return {tuple(run.pop(k) for k in ("network", "task", "seed")): run for run in runs}


def _measured(module: nn.Module, data: Path, name: str, seed: int) -> dict[str, float]:
    task = load_task(data / "datasets" / f"{name}.npz", 32).prepared(MEAN, DEVIATION)
    task = task.subset(IMAGES, torch.Generator().manual_seed(seed))
    chosen = torch.randperm(len(task.y_test), generator=torch.Generator().manual_seed(seed))[
        :IMAGES
    ]
    x_test, y_test = task.x_test[chosen], task.y_test[chosen]
    _fit(module, task)
    found = {"dense": accuracy(module, x_test, y_test)}
    for label, choose in IMPORTANCES.items():
        torch.manual_seed(seed)
        # The pruner asks about its own copy's layers.
        small = pruned_network(module, _bound(choose, task))
        condition(small, task.x_train, 16, 32, torch.Generator().manual_seed(seed))
        _fit(small, task)
        found[label] = accuracy(small, x_test, y_test)
    return found


def _bound(choose: Choose, task: Task) -> Callable[[nn.Module], Any]:
    return lambda own: choose(own, task)


def _fit(module: nn.Module, task: Task) -> None:
    layer = find_classifier(module, task.x_train[:2])
    assert layer is not None
    fit_classifier(module, layer, task.x_train, task.y_train)


def _write(rows: Mapping[Key, Mapping[str, float]]) -> str:
    labels = ["dense", *IMPORTANCES]
    lines = [f"| network, task | {' | '.join(labels)} |", "|---" * (len(labels) + 1) + "|"]
    for (depth, name, seed), found in rows.items():
        cells = " | ".join(f"{found[label]:.3f}" for label in labels)
        lines.append(f"| ResNet-{depth}, {name}, seed {seed} | {cells} |")
    means = [statistics.mean(found[label] for found in rows.values()) for label in labels]
    lines += [f"| mean | {' | '.join(f'{x:.3f}' for x in means)} |", ""]
    for label in list(IMPORTANCES)[1:]:
        gains = [found[label] - found[MAGNITUDE] for found in rows.values()]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        mean = statistics.mean(gains)
        verdict = (
            "beats"
            if mean > 2 * error
            else "falls behind"
            if mean < -2 * error
            else "is level with"
        )
        lines.append(
            f"- {label} {verdict} magnitude: {mean:+.3f} ± {error:.3f} in the mean of {len(gains)} rows"
        )
    text = "\n".join([*lines, ""])
    kept = [{"network": d, "task": t, "seed": s, **found} for (d, t, s), found in rows.items()]
    (zoodata.RESULTS / "importances.json").write_text(json.dumps(kept) + "\n")
    (zoodata.RESULTS / "importances.md").write_text(text)
    return text


if __name__ == "__main__":
    main()
