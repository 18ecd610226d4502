"""How many networks must be measured for a head, chosen by `zoo suggest` and at random?

    python benchmarks/suggest.py --data ../shared/data [--zoos runs/zoos] [--splits 8]

Learning curves on three zoos: from the checkpoints of 70 % of the networks, some are chosen by each criterion without
seeing any accuracy, a ridge head on layer statistics is fitted to those, and its R^2 is that on the checkpoints of the other
networks. The zoos are the two published ones and mnist-mlp (`benchmarks/zoos.py mnist-mlp`). The one number of BAIT, and
how many components are read, were settled on half of the networks of cifar10-cnn; its figures are those of the other half.
Writes results/suggest.json and suggest.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import zoodata
from zoodata import RESULTS

from sane_plugins.properties import CRITERIA, embed_rows
from sane_plugins.properties.regressors import Array, fit_ridge, predict

NAMES = ("cifar10-cnn", "mnist-cnn", "mnist-mlp")
SETTLED_ON = "cifar10-cnn"
SETTLING_SEED = 99
BUDGETS = (12, 16, 20, 30, 40, 60, 80, 120)
RANDOM, RANDOM_DRAWS = "random", 5
TEST_SHARE = 0.3
TOLD = 20  # measured networks, for the sentence of a row

Curves = Mapping[str, Mapping[int, Sequence[float]]]


def main() -> None:
    """Draw the curves of every zoo, and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds zoos/")
    parser.add_argument("--zoos", type=Path, default=Path("runs/zoos"))
    parser.add_argument("--splits", type=int, default=8)
    chosen = parser.parse_args()
    results = {}
    for zoo in zoodata.zoos(chosen.data, chosen.zoos, [*NAMES]):
        networks = np.array([entry.network for entry in zoo.entries])
        kept = np.ones(len(networks), dtype=bool)
        if zoo.name == SETTLED_ON:
            kept = ~settling_mask(networks)
        x = zoodata.plain_features(zoo)["statistics"].astype(np.float32)[kept]
        y, networks = zoodata.targets(zoo, "test_accuracy")[kept], networks[kept]
        results[zoo.name] = {
            "networks": len(set(networks)),
            "checkpoints": len(networks),
            "r2": curves(x, y, networks, chosen.splits),
        }
        print(table(results), flush=True)
    (RESULTS / "suggest.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "suggest.md").write_text(table(results))


def settling_mask(networks: Array) -> Array:
    """Return a mask (N,) of the rows that numbers were settled on: half of the networks."""
    names = np.unique(networks)
    half = np.random.default_rng(SETTLING_SEED).permutation(names)[: len(names) // 2]
    return np.asarray(np.isin(networks, half))


def curves(x: Array, y: Array, networks: Array, splits: int) -> Curves:
    """Return R^2 by criterion, number of measured rows and split; random choice is a mean of several."""
    found: dict[str, dict[int, list[float]]] = {
        name: {budget: [] for budget in BUDGETS} for name in (*CRITERIA, RANDOM)
    }
    names = np.unique(networks)
    for split in range(splits):
        rng = np.random.default_rng(split)
        test = np.isin(networks, rng.permutation(names)[: round(TEST_SHARE * len(names))])
        pool = np.flatnonzero(~test)
        rows = embed_rows(x[pool])
        for budget in (budget for budget in BUDGETS if budget < len(pool)):
            for name, criterion in CRITERIA.items():
                found[name][budget].append(_score(x, y, pool[criterion(rows, [], budget)], test))
            drawn = [rng.choice(pool, budget, replace=False) for _ in range(RANDOM_DRAWS)]
            mean = float(np.mean([_score(x, y, draw, test) for draw in drawn]))
            found[RANDOM][budget].append(mean)
    return found


def _score(x: Array, y: Array, selected: Array, test: Array) -> float:
    head = fit_ridge(x[selected], y[selected])
    return zoodata.scores(y[test], predict(head, x[test]))["r2"]


def needed(curve: Mapping[int, Sequence[float]], goal: float) -> str:
    """Return how many measured rows a mean curve first reaches an R^2 with, between budgets by interpolation."""
    budgets = [budget for budget, scores in curve.items() if scores]
    means = [float(np.mean(curve[budget])) for budget in budgets]
    if means[0] >= goal:
        return f"at most {budgets[0]}"
    for (a, low), (b, high) in zip(
        zip(budgets, means, strict=True), zip(budgets[1:], means[1:], strict=True), strict=False
    ):
        if high >= goal:
            return f"{np.interp(goal, [low, high], [a, b]):.0f}"
    return f"more than {budgets[-1]}"


def table(results: Mapping[str, Mapping[str, object]]) -> str:
    """Return the Markdown tables: curves with standard errors over splits, and what random choice needs."""
    lines = [
        "| zoo (checkpoints) | chosen by | " + " | ".join(map(str, BUDGETS)) + " |",
        "|---|---|" + "---|" * len(BUDGETS),
    ]
    ends = []
    for zoo, result in results.items():
        r2: Curves = result["r2"]  # type: ignore[assignment]
        for name, curve in r2.items():
            cells = [
                f"{np.mean(v):.2f} ± {np.std(v, ddof=1) / len(v) ** 0.5:.2f}" if v else ""
                for v in curve.values()
            ]
            lines.append(f"| {zoo} ({result['checkpoints']}) | {name} | {' | '.join(cells)} |")
        for name in CRITERIA:
            gain = np.array(r2[name][TOLD]) - np.array(r2[RANDOM][TOLD])
            error = gain.std(ddof=1) / len(gain) ** 0.5
            goal = float(np.mean(r2[name][TOLD]))
            ends.append(
                f"| {zoo} | {name} | {goal:.2f} | {gain.mean():+.2f} ± {error:.2f}"
                f" | {needed(r2[RANDOM], goal)} |"
            )
    head = (
        f"| zoo | chosen by | R² with {TOLD} | gain over random, paired by split | random choice needs |",
        "|---|---|---|---|---|",
    )
    return "\n".join([*lines, "", *head, *ends]) + "\n"


if __name__ == "__main__":
    main()
