"""A network that lost half of its inner channels: what does `initialize_` make of it, beside what pruning left?

    python benchmarks/pruned_channels.py --data ../shared/data [--seeds 5]

The recipe of docs/how-to/initialise-a-pruned-network.md, with the dense network's *file* as prompt: ResNet-20 trained on
CIFAR-10; Torch-Pruning (magnitude, 2-norm) removes half of the channels between the two convolutions of each block.
1,000 training images, another draw for each seed, are what the recipe sees, and what the pruned and the initialised
network are trained on for one epoch (Adam, 1e-3, batch 64; and 1e-4). Accuracy on 1,000 test images. A seed that is
done is kept in a file beside the zoos and not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch_pruning
import zoodata
from torch import nn

import sane_plugins
from sane_plugins.architectures import resnet
from sane_plugins.initialize import TrainOptions, train_epochs
from sane_plugins.tasks import Task, accuracy, load_task
from sane_plugins.weights import copy_module, load_into

CHECKPOINT = "checkpoints/akamaster_pytorch_resnet_cifar10/resnet20-12fca82f.th"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # that it was trained with
IMAGES, RATES = 1_000, (1e-3, 1e-4)
NAMES = {"pruned": "as pruning left it", "initialized": "initialize_, dense file as prompt"}
MAGNITUDE = torch_pruning.importance.MagnitudeImportance(p=2)
AIM = 0.01  # over the pruned weights, after an epoch at the first rate


def dense_network(host: sane_plugins.Host, data: Path) -> nn.Module:
    """Return the dense ResNet-20."""
    module = resnet()
    load_into(module, host.open(str(data / CHECKPOINT)))
    return module.eval()


def pruned_network(
    dense: nn.Module, importance: Callable[[nn.Module], Any] | None = None, share: float = 0.5
) -> nn.Module:
    """Return a copy without a share of the channels between the two convolutions of each block.

    `importance` gets the copy, and returns what Torch-Pruning asks.
    """
    small = copy_module(dense).requires_grad_(True)
    inner = [block.conv1 for stage in (small.layer1, small.layer2, small.layer3) for block in stage]  # type: ignore[union-attr]
    others = [
        x
        for x in small.modules()
        if isinstance(x, nn.Conv2d | nn.Linear) and not any(x is y for y in inner)
    ]
    pruner = torch_pruning.pruner.BasePruner(
        small,
        torch.zeros(1, 3, 32, 32),
        importance=importance(small) if importance else MAGNITUDE,
        pruning_ratio=share,
        ignored_layers=others,
    )
    pruner.step()
    return small.eval()


def main() -> None:
    """Measure all seeds that are not measured yet; exit 1 where the aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--kept", type=Path, default=zoodata.RUNS / "pruned_channels.jsonl")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.kept.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.kept.read_text().splitlines() if arguments.kept.exists() else []
    runs = {run["seed"]: run for run in map(json.loads, lines)}
    host = sane_plugins.Host.installed()
    dense = dense_network(host, arguments.data)
    images = load_task(arguments.data / "datasets" / "cifar10.npz").prepared(MEAN, DEVIATION)
    for seed in range(arguments.seeds):
        if seed not in runs:
            runs[seed] = run = {"seed": seed, **_measured(host, dense, images, seed)}
            with arguments.kept.open("a") as file:
                file.write(json.dumps(run) + "\n")
        print(runs[seed], file=sys.stderr, flush=True)
    chosen = [runs[seed] for seed in range(arguments.seeds)]
    text, is_met = _table(chosen)
    (zoodata.RESULTS / "pruned_channels.json").write_text(json.dumps(chosen) + "\n")
    (zoodata.RESULTS / "pruned_channels.md").write_text(text)
    print(text)
    sys.exit(not is_met)


def _measured(host: sane_plugins.Host, dense: nn.Module, images: Task, seed: int) -> dict[str, Any]:
    task = images.subset(IMAGES, torch.Generator().manual_seed(seed))
    small = pruned_network(dense)
    started = copy_module(small)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "dense.pt"
        torch.save(dense.state_dict(), file)
        result = sane_plugins.initialize_(started, task, [str(file)], host=host)
    chosen = next(row.name for row in result.rows if row.chosen)
    networks = {"pruned": small, "initialized": started}
    scores = {name: _curves(module, task, seed) for name, module in networks.items()}
    return {"chosen": chosen.replace(str(file), "dense.pt"), **scores}


def _curves(module: nn.Module, task: Task, seed: int) -> Mapping[str, float]:
    scores = {"before": accuracy(module, task.x_test, task.y_test)}
    for rate in RATES:
        options, rng = TrainOptions(lr=rate), torch.Generator().manual_seed(seed)
        copied = copy_module(module).requires_grad_(True)
        scores[f"{rate:g}"] = train_epochs(copied, task, 1, options, rng)[0]
    return scores


def _table(runs: list[dict[str, Any]]) -> tuple[str, bool]:
    heads = ["before", *(f"after an epoch at {rate:g}" for rate in RATES)]
    lines = [
        f"| ResNet-20, half of the inner channels, {len(runs)} seeds | {' | '.join(heads)} |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for name, told in NAMES.items():
        columns = [[run[name][key] for run in runs] for key in runs[0][name]]
        cells = [
            f"{statistics.mean(c):.3f} ± {statistics.stdev(c) if len(c) > 1 else 0:.3f}"
            for c in columns
        ]
        lines.append(f"| {told} | {' | '.join(cells)} |")
    first = f"{RATES[0]:g}"
    gains = [run["initialized"][first] - run["pruned"][first] for run in runs]
    gain = statistics.mean(gains)
    chosen = ", ".join(sorted({run["chosen"] for run in runs}))
    is_met = gain >= AIM
    verdict = (
        f"- {'met' if is_met else 'MISSED'}: after an epoch at {first} {gain:+.3f} over the pruned weights, in the mean"
        f" (single seeds {min(gains):+.3f} to {max(gains):+.3f}); {AIM:+.2f} was wanted"
    )
    return "\n".join([*lines, "", verdict, f"- chosen: {chosen}", ""]), is_met


if __name__ == "__main__":
    main()
