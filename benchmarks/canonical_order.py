"""How far embeddings and predictions move when a network hardly changes, by the order of its channels.

    python benchmarks/canonical_order.py --data DIR

20 networks of the published zoos and two published ResNets are changed: channels shuffled, half precision, noise
of 1 % and 10 % of each tensor's deviation, one epoch of fine-tuning on 2,000 images (Adam, 1e-4). Compared are the
channels' own order, the canonical one (sorted by norm), and the mean of the embeddings of 4 random orders (of small networks). Distances
are in units of the median distance between two networks of the group. Predictions are the shipped heads' of test
accuracy, which read features in canonical order. Times are of a wide network of 75 million values in a file, one thread.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from torch import nn

from sane_plugins.architectures import resnet
from sane_plugins.autoencoder import SANE, embedded_sane, encode
from sane_plugins.features import EncodeOptions, SaneEncoder
from sane_plugins.formats import open_file, save_network
from sane_plugins.generation import connected_like
from sane_plugins.initialize import TrainOptions, train_epochs
from sane_plugins.properties import PredictOptions, predict
from sane_plugins.symmetry import (
    canonical_form,
    canonical_layers,
    permutation_groups,
    permute,
    random_permutations,
)
from sane_plugins.tasks import Task, load_task
from sane_plugins.weights import WeightGraph, copy_module, from_module
from sane_plugins.zoo import import_published

RESULTS = Path(__file__).parent / "results"
RESNETS = ("20-12fca82f", "32-d509ac18")
POOLED = 4
MAX_POOLED_SIZE = 100_000
Change = Callable[[nn.Module, Task], WeightGraph]


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--networks", type=int, default=10, help="of each zoo")
    arguments = parser.parse_args()
    model: SANE = embedded_sane()
    rows: list[dict[str, Any]] = []
    for name, task, modules in groups(arguments.data, arguments.networks):
        rows += measured(name, task, modules, model)
        print(name, flush=True)
    found = {"rows": rows, "seconds": times(model)}
    (RESULTS / "canonical_order.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "canonical_order.md").write_text(page(found))


def groups(data: Path, count: int) -> Iterator[tuple[str, Task, list[nn.Module]]]:
    """Yield the groups of networks that are compared, with images of their task."""
    rng = torch.Generator().manual_seed(0)
    for name in ("mnist", "cifar10"):
        zoo = import_published(data / "zoos" / f"{name}-cnn.json")
        good = [e for e in zoo.entries if e.properties["finite"]]
        best = sorted(good, key=lambda e: -float(e.properties["test_accuracy"]))
        task = load_task(data / "datasets" / f"{name}.npz", 28 if name == "mnist" else None)
        step = max(1, len(best) // 2 // count)
        modules = [zoo.module(e) for e in best[: step * count : step]]
        yield f"{name}-cnn", task.subset(2000, rng), modules
    modules = []
    for stem in RESNETS:
        path = data / "checkpoints" / "akamaster_pytorch_resnet_cifar10" / f"resnet{stem}.th"
        stored = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
        modules.append(resnet(depth=int(stem[:2])))
        modules[-1].load_state_dict({k.removeprefix("module."): x for k, x in stored.items()})
    yield "resnets", task.subset(2000, rng), modules


def changes() -> Mapping[str, Change]:
    """Return what is done to the networks."""

    def noisy(share: float) -> Change:
        def change(module: nn.Module, _: Task) -> WeightGraph:
            graph, rng = from_module(module), torch.Generator().manual_seed(1)
            return graph.replace(
                {
                    p.key: x + share * x.std(correction=0) * torch.randn(x.shape, generator=rng)
                    for p, x in graph.items()
                    if p.role != "running_var"
                }
            )

        return change

    def tuned(module: nn.Module, task: Task) -> WeightGraph:
        train_epochs(module, task, 1, TrainOptions(lr=1e-4), torch.Generator().manual_seed(2))
        return from_module(module.eval())

    def halved(module: nn.Module, _: Task) -> WeightGraph:
        graph = from_module(module)
        return graph.replace({p.key: x.half().float() for p, x in graph.items()})

    return {
        "channels shuffled": lambda module, _: shuffled(from_module(module), 3),
        "half precision": halved,
        "noise of 1 %": noisy(0.01),
        "noise of 10 %": noisy(0.1),
        "one epoch": tuned,
    }


def shuffled(graph: WeightGraph, seed: int) -> WeightGraph:
    """Return a copy with its channels in random order."""
    known = permutation_groups(graph)
    rng = torch.Generator().manual_seed(seed)
    return permute(graph, random_permutations(known, rng), known)


def orders(model: SANE) -> Mapping[str, Callable[[WeightGraph], torch.Tensor]]:
    """Return the embedding (E,) of a network by the order of its channels."""

    def embedding(graph: WeightGraph) -> torch.Tensor:
        latents = encode(model, canonical_layers(graph), precision="auto").values
        return latents.double().mean(0)

    def pooled(graph: WeightGraph) -> torch.Tensor:
        return torch.stack([embedding(shuffled(graph, i)) for i in range(POOLED)]).mean(0)

    return {
        "own": embedding,
        "canonical": lambda graph: embedding(canonical_form(graph)),
        f"mean of {POOLED}": pooled,
    }


def measured(
    name: str, task: Task, modules: Sequence[nn.Module], model: SANE
) -> list[dict[str, Any]]:
    """Return the distances of one group of networks, a row per change and order."""
    plain = [from_module(copy_module(module)) for module in modules]
    changed = {
        what: [change(copy_module(module), task) for module in modules]
        for what, change in changes().items()
    }
    rows = []
    for order, embed in orders(model).items():
        if order.startswith("mean") and plain[0].size > MAX_POOLED_SIZE:
            continue
        own = [embed(graph) for graph in plain]
        unit = median(float((a - b).norm()) for a, b in combinations(own, 2))
        for what, others in changed.items():
            moved = [
                float((embed(graph) - e).norm()) / unit
                for graph, e in zip(others, own, strict=True)
            ]
            rows.append(_row(name, what, f"embedding, {order}", moved))
    predicted = [accuracy(graph) for graph in plain]
    for what, others in changed.items():
        shifts = [abs(accuracy(x) - before) for x, before in zip(others, predicted, strict=True)]
        rows.append(_row(name, what, "predicted accuracy", shifts))
    return rows


def accuracy(graph: WeightGraph) -> float:
    """Return the test accuracy that the shipped head predicts."""
    estimate = predict(graph, options=PredictOptions(properties=("test_accuracy",)))
    return float(estimate["test_accuracy"].value)


def _row(name: str, change: str, measure: str, moved: Sequence[float]) -> dict[str, Any]:
    return {
        "networks": name,
        "count": len(moved),
        "change": change,
        "measure": measure,
        "median": median(moved),
        "largest": max(moved),
    }


def times(model: SANE, rounds: int = 2) -> dict[str, float]:
    """Return the seconds that encoding a file of 300 MB takes, with and without the canonical order."""
    torch.set_num_threads(1)
    widths = [1024] + [3072] * 8
    module = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))
    graph, options = from_module(module), EncodeOptions(latents=False)
    found: dict[str, list[float]] = {"canonical_form": [], "all": []}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "wide.safetensors"
        save_network(graph, path, None)
        read = open_file(path)
        assert read is not None
        stored = connected_like(read, graph, frozenset())
        for _ in range(rounds):
            started = perf_counter()
            canonical_form(stored)
            found["canonical_form"].append(perf_counter() - started)
            started = perf_counter()
            SaneEncoder(model).encode(stored, options)
            found["all"].append(perf_counter() - started)
    return {"values": graph.size, **{key: median(x) for key, x in found.items()}}


def page(found: Mapping[str, Any]) -> str:
    """Return the results as a page."""
    lines = [
        "# The order of channels",
        "",
        "Written by `python benchmarks/canonical_order.py`, whose docstring says what is compared.",
        "",
        "| networks | count | change | of | median | largest |",
        "|---|---|---|---|---|---|",
    ]
    keys = ("networks", "count", "change", "measure")
    for row in sorted(found["rows"], key=lambda x: (x["networks"], x["change"])):
        cells = [str(row[key]) for key in keys]
        lines.append(f"| {' | '.join(cells)} | {row['median']:.2g} | {row['largest']:.2g} |")
    seconds = found["seconds"]
    share = seconds["canonical_form"] / (seconds["all"] - seconds["canonical_form"])
    lines += [
        "",
        f"Encoding a file of {seconds['values']:,} values takes {seconds['all']:.1f} s on one thread;"
        f" {seconds['canonical_form']:.1f} s of it find the order, {share:.0%} of the rest.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
