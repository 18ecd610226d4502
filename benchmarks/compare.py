"""Is "B is better, 83 %" right in 83 % of cases? Pairs of networks that the head has not seen.

    python benchmarks/compare.py --data DIR

Heads of layer statistics are fitted on seven of ten training runs of both published zoos together, three times,
and asked about all pairs of checkpoints of the other runs: of one run, of two runs of a zoo, and of two zoos.
`product_of_errors` is the mean product of both errors, each in the half-width of its own interval.
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sane_plugins.features import ENCODERS, EncodeOptions, structure
from sane_plugins.properties import (
    Estimate,
    FeatureDataset,
    PropertyHead,
    compare_estimates,
    fit_head,
)
from sane_plugins.properties.dataset import STRUCTURE
from sane_plugins.properties.regressors import Array
from sane_plugins.zoo import import_published

RESULTS = Path(__file__).parent / "results"
ZOOS = ("mnist-cnn", "cifar10-cnn")
BINS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
FITTED, SPLITS = 0.7, 3
KINDS = ("one run", "two runs of a zoo", "two zoos")


def read(data: Path) -> tuple[dict[str, Array], list[str], list[str], Array]:
    """Return features, runs, zoos and accuracies of all finite checkpoints."""
    rows: dict[str, list[Array]] = {"statistics": [], STRUCTURE: []}
    runs, zoos, accuracy = [], [], []
    for name in ZOOS:
        zoo = import_published(data / "zoos" / f"{name}.json")
        for entry in zoo.entries:
            if not entry.properties["finite"]:
                continue
            graph = zoo.graph(entry)
            features = ENCODERS["statistics"].features(graph, EncodeOptions())
            rows["statistics"].append(features.numpy())
            rows[STRUCTURE].append(structure(graph))
            runs.append(f"{name}/{entry.network}")
            zoos.append(name)
            accuracy.append(float(entry.properties["test_accuracy"]))
    return {key: np.stack(x) for key, x in rows.items()}, runs, zoos, np.array(accuracy)


def ask(head: PropertyHead, features: dict[str, Array], which: list[int]) -> dict[int, Estimate]:
    """Return the estimate of each checkpoint of a known kind."""
    estimates = {i: head.estimate({key: x[i] for key, x in features.items()}) for i in which}
    return {i: x for i, x in estimates.items() if x.in_distribution}


def measure(data: Path) -> list[dict[str, Any]]:
    """Return for each kind of pair how often the more probable network was the better one."""
    features, runs, zoos, accuracy = read(data)
    names = sorted({*runs})
    told: dict[str, list[tuple[float, bool]]] = {kind: [] for kind in KINDS}
    products: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(len(names))
        fitted = {names[i] for i in order[: round(FITTED * len(names))]}
        rows = [i for i, run in enumerate(runs) if run in fitted]
        samples = FeatureDataset(
            features={key: x[rows] for key, x in features.items()}, networks=[runs[i] for i in rows]
        )
        head = fit_head("test_accuracy", samples, accuracy[rows], features="statistics", seed=seed)
        rest = [i for i, run in enumerate(runs) if run not in fitted]
        estimates = ask(head, features, rest)
        for i, j in combinations(estimates, 2):
            if accuracy[i] == accuracy[j]:
                continue
            kind = KINDS[(runs[i] != runs[j]) + (zoos[i] != zoos[j])]
            a, b = estimates[i], estimates[j]
            result = compare_estimates(a, b, sure=0.5)
            is_right = (result.better == "b") == (accuracy[j] > accuracy[i])
            told[kind].append((result.probability or 0.5, is_right))
            errors = [
                (x.value - accuracy[k]) / max(x.interval[1] - x.value, x.value - x.interval[0])
                for k, x in ((i, a), (j, b))
            ]
            products[kind].append(errors[0] * errors[1])
        print(f"split {seed}: {len(estimates)} of {len(rest)} of a known kind", flush=True)
    power = {kind: float(np.mean(x)) for kind, x in products.items()}
    return [summary(kind, told[kind], power[kind]) for kind in KINDS]


def summary(kind: str, told: list[tuple[float, bool]], product: float) -> dict[str, Any]:
    """Return the share that was right, by what was told."""
    probability = np.array([x for x, _ in told])
    right = np.array([x for _, x in told])
    bins = []
    for low, high in pairwise(BINS):
        inside = (probability >= low) & ((probability < high) | (high == 1))
        if inside.any():
            bins.append(
                {
                    "told": [low, high],
                    "mean": float(probability[inside].mean()),
                    "right": float(right[inside].mean()),
                    "pairs": int(inside.sum()),
                }
            )
    sure = probability >= 0.8
    return {
        "pairs": kind,
        "count": len(told),
        "answered": float(sure.mean()),
        "right_of_answered": float(right[sure].mean()),
        "product_of_errors": product,
        "bins": bins,
    }


def write(rows: list[dict[str, Any]]) -> None:
    """Write the figures, and the table of the results page."""
    (RESULTS / "compare.json").write_text(json.dumps(rows, indent=1) + "\n")
    lines = [
        "# Which of two networks is better",
        "",
        "Pairs of networks that the head has not seen. Written by `python benchmarks/compare.py --data DIR`.",
        "",
        "| pairs | number | told (80 % or more) | right of these | told 80 to 90 % | right | told 95 to 99 % | right |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        by_low = {x["told"][0]: x for x in row["bins"]}
        cells = [
            f"{by_low[low]['mean']:.0%} | {by_low[low]['right']:.0%}" if low in by_low else " | "
            for low in (0.8, 0.95)
        ]
        lines.append(
            f"| {row['pairs']} | {row['count']:,} | {row['answered']:.0%} | {row['right_of_answered']:.1%} |"
            f" {' | '.join(cells)} |"
        )
    (RESULTS / "compare.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    write(measure(parser.parse_args().data))


if __name__ == "__main__":
    main()
