"""How good are weights from `sane-init` before any training, where the prompts' zoo holds the task?

    python benchmarks/within.py --data ../shared/data [--seeds 5]

Small CNN (relu), prompts from mnist-cnn for MNIST and from cifar10-cnn for CIFAR-10; at most 10,000 training images, of
which 2,000 fit the classifier in closed form. Test accuracy without training, of what `sane-init` writes and of a single
network that is generated without any comparison.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from functools import partial
from pathlib import Path

import torch
import zoodata

from sane_plugins.architectures import small_cnn
from sane_plugins.autoencoder import embedded_sane
from sane_plugins.generation import choose_prompts
from sane_plugins.initialize import InitializeOptions, generate, initialize
from sane_plugins.tasks import accuracy, load_task

WANTED = {"mnist": 0.85, "cifar10": 0.35}


def main() -> None:
    """Measure both tasks; exit 1 where what was asked for is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sane, found = embedded_sane(), {}
    for name in WANTED:
        task = load_task(arguments.data / "datasets" / f"{name}.npz")
        zoo = zoodata.zoos(arguments.data, Path(), [f"{name}-cnn"])[0]
        make = partial(small_cnn, task.channels)
        prompts = choose_prompts(make(), zoo).graphs
        rows = []
        for seed in range(arguments.seeds):
            part = task.subset(10_000, torch.Generator().manual_seed(seed))
            options = InitializeOptions(seed=seed, images=4000)
            runs = (run(make, part, prompts, sane, options) for run in (initialize, generate))
            rows.append([accuracy(x.module, task.x_test, task.y_test) for x in runs])
            print(f"{name} {seed}: {rows[-1]}", file=sys.stderr, flush=True)
        found[name] = rows
    text = _table(found)
    (zoodata.RESULTS / "within.json").write_text(json.dumps(found) + "\n")
    (zoodata.RESULTS / "within.md").write_text(text)
    print(text)
    sys.exit("MISSED" in text)


def _table(found: dict[str, list[list[float]]]) -> str:
    lines = ["| task | sane-init | one network, nothing compared |", "|---|---|---|"]
    verdicts = []
    for name, rows in found.items():
        columns = list(zip(*rows, strict=True))
        lines.append(f"| {name} ({len(rows)} seeds) | {' | '.join(_cell(c) for c in columns)} |")
        mean = statistics.mean(columns[0])
        word = "met" if mean >= WANTED[name] else "MISSED"
        verdicts.append(f"- {word}: {name}, {mean:.3f} of {WANTED[name]:.2f} before training")
    return "\n".join([*lines, "", *verdicts, ""])


def _cell(values: tuple[float, ...]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {spread:.3f}"


if __name__ == "__main__":
    main()
