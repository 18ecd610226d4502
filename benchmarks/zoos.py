"""Train the zoos that the other benchmarks use beside the published ones.

    python benchmarks/zoos.py --data ../shared/data [--out runs/zoos] [--processes 1] [NAME...]

Hyper-parameters are drawn from the ranges of the published zoos. A zoo that is there is left alone; one
that was interrupted is gone on with. Writes results/zoos.json and zoos.md: how well the networks train, as
quartiles of test accuracy after the last epoch, and how long it took.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch

from sane_plugins.progress import Progress
from sane_plugins.tasks import load_task
from sane_plugins.zoo import Zoo
from sane_plugins.zoo_training import TrainingImages, ZooOptions, train_zoo

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One zoo of ours."""

    dataset: str
    architecture: str
    networks: int
    images: int
    seed: int
    size: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


RECIPES = {
    "animals-cnn": Recipe(
        dataset="animal_mnist", architecture="small_cnn", networks=140, images=8000, seed=21
    ),
    "mnist-mlp": Recipe(
        dataset="mnist",
        architecture="mlp",
        networks=140,
        images=10_000,
        seed=22,
        settings={"size": 28, "width": 16, "depth": 2},
    ),
    "mnist-resnet": Recipe(
        dataset="mnist",
        architecture="resnet",
        networks=48,
        images=6000,
        seed=23,
        size=16,
        settings={"depth": 8, "width": 8},
    ),
}


def main() -> None:
    """Train what is missing, and write what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds datasets/")
    parser.add_argument("--out", type=Path, default=Path("runs/zoos"))
    parser.add_argument("--processes", type=int, default=1)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in chosen.names or RECIPES:
        start = time.perf_counter()
        zoo = trained(name, chosen.data, chosen.out, chosen.processes)
        rows.append(described(zoo, RECIPES[name], time.perf_counter() - start))
        print(table([rows[-1]]), flush=True)
    rows = merged(rows)
    (RESULTS / "zoos.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "zoos.md").write_text(table(rows))


def trained(name: str, data: Path, out: Path, processes: int) -> Zoo:
    """Train or resume one zoo, or open it."""
    recipe = RECIPES[name]
    task = load_task(data / "datasets" / f"{recipe.dataset}.npz", recipe.size)
    task = task.subset(recipe.images, torch.Generator().manual_seed(recipe.seed))
    images = TrainingImages(
        x_train=task.x_train, y_train=task.y_train, x_test=task.x_test, y_test=task.y_test
    )
    options = ZooOptions(
        name=name,
        dataset=recipe.dataset,
        architecture=recipe.architecture,
        settings=recipe.settings,
        networks=recipe.networks,
        seed=recipe.seed,
    )
    return train_zoo(
        images, options, out / name, processes=processes, resume=True, report=_Lines(name)
    )


class _Lines:
    """Prints a line a minute."""

    def __init__(self, name: str) -> None:
        self._name, self._last = name, 0.0

    def __call__(self, event: Progress) -> None:
        if time.monotonic() - self._last >= 60:
            self._last = time.monotonic()
            print(f"{self._name}: {event.done} of {event.total} steps, {event.note}", flush=True)


def described(zoo: Zoo, recipe: Recipe, seconds: float) -> dict[str, Any]:
    """Return what the table shows of a zoo."""
    last = max(float(entry.properties["epoch"]) for entry in zoo.entries)
    final = [entry for entry in zoo.entries if entry.properties["epoch"] == last]
    accuracy = sorted(float(entry.properties["test_accuracy"]) for entry in final)
    sizes = {sum(value.numel() for value in zoo.state_dict(e).values()) for e in final[:1]}
    return {
        "zoo": zoo.name,
        "dataset": recipe.dataset,
        "architecture": recipe.architecture,
        "values": sizes.pop(),
        "networks": len(zoo.networks),
        "checkpoints": len(zoo),
        "images": recipe.images,
        "diverged": sum(not e.properties["finite"] for e in final),
        "accuracy": [accuracy[0], *quantiles(accuracy), accuracy[-1]],
        "seconds": seconds,
    }


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return these rows with earlier ones of other zoos, and the time of the run that trained each."""
    path = RESULTS / "zoos.json"
    old = {row["zoo"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    for row in rows:
        known = old.get(row["zoo"], row)
        old[row["zoo"]] = {**row, "seconds": max(row["seconds"], known["seconds"])}
    return [old[name] for name in RECIPES if name in old]


def table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown table."""
    lines = [
        "| zoo | architecture | values | networks x checkpoints | images | diverged |"
        " test accuracy after the last epoch (min, quartiles, max) | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        spread = " ".join(f"{value:.2f}" for value in row["accuracy"])
        count = row["checkpoints"] // row["networks"]
        lines.append(
            f"| {row['zoo']} | {row['architecture']} | {row['values']:,} | {row['networks']} x {count}"
            f" | {row['images']:,} | {row['diverged']} | {spread} | {row['seconds'] / 60:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
