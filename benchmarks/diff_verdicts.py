"""Does `diff` name what was done to a network? Pairs of files of known relation, and the verdict on each.

    python benchmarks/diff_verdicts.py --data DIR             # reported networks: writes results/diff_verdicts.*
    python benchmarks/diff_verdicts.py --data DIR --settling  # those on which thresholds were settled; printed only

Published networks (two ResNets and a CNN, all of CIFAR-10) and two of torchvision that are trained here for an epoch on
photos. Each is changed in every way of `RELATIVES`, written as an engineer would have the file (torch,
safetensors, ONNX, quantised ONNX), opened by the ordinary way, and compared with the file that it comes from.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import torch
from network_changes import RELATIVES, Subject
from torch import nn

import sane_plugins
from sane_plugins.architectures import import_torchvision, resnet
from sane_plugins.comparison import NetworkComparison, Verdict, compare, judge
from sane_plugins.initialize import TrainOptions, train_epochs
from sane_plugins.tasks import Task, load_task
from sane_plugins.zoo import import_published

RESULTS = Path(__file__).parent / "results"
IMAGES = 400
PUBLISHED = "akamaster_pytorch_resnet_cifar10/resnet{}.th"
STEMS = {20: "20-12fca82f", 32: "32-d509ac18", 56: "56-4bfd9763"}


def main() -> None:
    """Compare all pairs, and write or print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--settling", action="store_true", help="other networks; writes nothing")
    parser.add_argument("--network", default="", help="networks with this word in their name")
    parser.add_argument("--only", default="", help="kinds with this word in their name")
    parser.add_argument("--work", type=Path, help="keeps what is done: a run that stopped goes on")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # of the exporter, about itself
    logging.disable(logging.WARNING)
    rows = []
    for subject in subjects(arguments.data, arguments.settling, arguments.network):
        with TemporaryDirectory() as folder:
            rows += [*judged(subject, Path(folder), arguments.only, arguments.work)]
    if not (arguments.settling or arguments.only or arguments.network):
        (RESULTS / "diff_verdicts.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n")
        (RESULTS / "diff_verdicts.md").write_text(page(rows))
    right = sum(row["verdict"] in row["expected"] for row in rows)
    print(f"{right} of {len(rows)} right")


def judged(
    subject: Subject, folder: Path, only: str, work: Path | None
) -> Iterator[dict[str, Any]]:
    """Yield the verdict on each relative of a network; `work` has those of earlier runs."""
    original = folder / "original.pt"
    torch.save(subject.module.state_dict(), original)
    for (kind, expected), change in RELATIVES.items():
        if only not in kind:
            continue
        kept = work and work / f"{subject.name}, {kind}.json".replace(" ", "_")
        if kept and kept.exists():
            yield json.loads(kept.read_text())
            continue
        torch.manual_seed(1)
        path = change(subject, folder)
        pair = (path, original) if kind == "widened" else (original, path)
        one, other = (sane_plugins.open(file) for file in pair)
        started = process_time()
        comparison = compare(one, other)
        verdict = judge(comparison)
        row = {
            "network": subject.name,
            "kind": kind,
            "expected": expected.split(" or "),
            "verdict": verdict.kind.value,
            "values": comparison.size,
            "seconds": round(process_time() - started, 2),
            **figures(comparison, verdict),
        }
        mark = "" if row["verdict"] in row["expected"] else "   WRONG"
        print(
            f"{subject.name:22} {kind:28} {row['verdict']:12} {row['seconds']:6}{mark}", flush=True
        )
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(row))
        yield row


def figures(comparison: NetworkComparison, verdict: Verdict) -> dict[str, Any]:
    """Return how many layers each thing happened to, and how far matrices moved."""
    moved = [
        x.relation.distance
        for x in comparison.tensors
        if len(x.a.shape) > 1 and x.change not in ("replaced", "equal") and x.relation.distance
    ]
    return {
        "layers": dict(Counter(layer.change for layer in comparison.layers)),
        "distance": [min(moved), max(moved)] if moved else None,
        "shared": verdict.shared,
    }


def subjects(data: Path, settling: bool, wanted: str) -> Iterator[Subject]:
    """Yield the networks with a word in their name."""

    @cache
    def task(name: str) -> Task:
        path = data / "datasets" / f"{name}.npz"
        whole = load_task(path, 28 if "mnist" in name else None)
        return whole.subset(IMAGES, torch.Generator().manual_seed(0))

    for depth, other in [(20, 32)] if settling else [(32, 56), (56, 32)]:
        if wanted not in f"resnet{depth}, published":
            continue
        yield Subject(
            name=f"resnet{depth}, published",
            module=published(data, depth),
            stranger=published(data, other),
            task=task("cifar10"),
            other_task=task("photos10"),
        )
    zoo_name = "mnist" if settling else "cifar10"
    if wanted in f"{zoo_name}-cnn, published":
        zoo = import_published(data / "zoos" / f"{zoo_name}-cnn.json")
        good = zoo.where(lambda entry: bool(entry.properties["finite"]))
        best = sorted(good.entries, key=lambda e: -float(e.properties["test_accuracy"]))
        other_network = next(x for x in best if x.network != best[0].network)
        yield Subject(
            name=f"{zoo_name}-cnn, published",
            module=zoo.module(best[0]).eval(),
            stranger=zoo.module(other_network).eval(),
            task=task(zoo_name),
            other_task=task("fashion_mnist" if settling else "photos10"),
        )
    photos = ("photos10b", "photos10") if settling else ("photos10", "photos10b")
    for name in ["squeezenet1_1"] if settling else ["mobilenet_v3_small", "shufflenet_v2_x0_5"]:
        if wanted not in f"torchvision {name}":
            continue
        yield Subject(
            name=f"torchvision {name}",
            module=trained(name, task(photos[0]), 0),
            stranger=trained(name, task(photos[0]), 1),
            task=task(photos[0]),
            other_task=task(photos[1]),
        )


def published(data: Path, depth: int) -> nn.Module:
    """Return a published ResNet of CIFAR-10."""
    path = data / "checkpoints" / PUBLISHED.format(STEMS[depth])
    stored = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    module = resnet(depth=depth)
    module.load_state_dict({k.removeprefix("module."): x for k, x in stored.items()})
    return module.eval()


def trained(name: str, task: Task, seed: int) -> nn.Module:
    """Return a network of torchvision after one epoch."""
    torch.manual_seed(seed)
    module: nn.Module = getattr(import_torchvision().models, name)(weights=None, num_classes=10)
    train_epochs(module, task, 1, TrainOptions(), torch.Generator().manual_seed(seed))
    return module.eval()


def page(rows: list[dict[str, Any]]) -> str:
    """Return the results as a page."""
    names = list(dict.fromkeys(row["network"] for row in rows))
    right = sum(row["verdict"] in row["expected"] for row in rows)
    lines = [
        f"{right} of {len(rows)} verdicts are right. Values are those of both networks together, each tensor counted once.",
        "",
        "| what was done | expected | right | verdicts that are not | distance of matrices |",
        "|---|---|---|---|---|",
    ]
    for kind, expected in RELATIVES:
        found = [row for row in rows if row["kind"] == kind]
        wrong = [
            f"{row['verdict']} ({row['network']})"
            for row in found
            if row["verdict"] not in row["expected"]
        ]
        moved = [x for row in found if row["distance"] for x in row["distance"]]
        span = f"{min(moved):.2g} to {max(moved):.2g}" if moved else ""
        count = f"{len(found) - len(wrong)} of {len(found)}"
        lines.append(f"| {kind} | {expected} | {count} | {', '.join(wrong)} | {span} |")
    lines += [
        "",
        "| network | values | processor seconds of a comparison, median and most |",
        "|---|---|---|",
    ]
    for name in names:
        found = [row for row in rows if row["network"] == name]
        seconds = sorted(row["seconds"] for row in found)
        lines.append(
            f"| {name} | {found[0]['values']:,} | {seconds[len(seconds) // 2]:.1f}, {seconds[-1]:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
