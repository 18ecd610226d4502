"""How well properties are predicted from weights: heads against baselines, split by network.

    python benchmarks/properties.py --data ../shared/data [--zoos runs/zoos] [--sane FILE]

Each split draws its test networks (30 % of a zoo) from the evaluation pool, which the shipped SANE has not
seen; all other networks fit. The head's features and regressor are chosen by cross-validation among those
networks alone. Writes properties.json and properties.md in benchmarks/results/, and prints the table.
Exit code 1: a criterion of `criteria` is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoodata
from zoodata import BASELINES, MEMORY, PROPERTIES, RESULTS, RIVAL, RUNS, scores

from sane_plugins.autoencoder import SANE, fingerprint
from sane_plugins.properties import FeatureDataset, PropertyHead, dataset, fit_head
from sane_plugins.properties.dataset import STRUCTURE, stack_features
from sane_plugins.properties.fitting.cross_validation import SHRUNK, fit_members
from sane_plugins.properties.regressors import Array, predict
from sane_plugins.zoo import Zoo, evaluation_pool

SPLITS = 3
TEST_SHARE = 0.3
HEAD = "chosen head"
ALONE = "features: sane"
OWN = ("sane", "statistics", STRUCTURE)
CODE = ("numeric_head", "cross_validation", "head", "dataset", "conformal", "regressors")
COVERED = (0.87, 0.93)
REACH = {
    "mnist-cnn test_accuracy": 0.97,
    "cifar10-cnn test_accuracy": 0.95,
    "mnist-cnn epoch": 0.75,
    "cifar10-cnn epoch": 0.75,
    "mnist-cnn gap": 0.6,
    "cifar10-cnn gap": 0.6,
}
"""Aims in R^2. What was tried is told in NOTES."""
NOTES = Path(__file__).with_name("properties-tried.md")


def main() -> None:
    """Measure every cell, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument(
        "--zoos", type=Path, default=RUNS / "zoos", help="folder of zoos trained here"
    )
    parser.add_argument("--only", action="append", help="a zoo's name; all by default")
    parser.add_argument("--sane", type=Path, help="a SANE file; the embedded one by default")
    parser.add_argument("--out", type=Path, default=RESULTS / "properties.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start, (model, note) = time.perf_counter(), zoodata.sane(arguments.sane)
    cells: dict[str, Any] = {}
    for zoo in zoodata.zoos(arguments.data, arguments.zoos, arguments.only):
        cells |= _zoo(zoo, model)
    seconds = round(time.perf_counter() - start)
    asked = criteria(cells)
    result = {
        "sane": fingerprint(model),
        "note": note,
        "splits": SPLITS,
        "seconds": seconds,
        "criteria": asked,
        "cells": cells,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    page = f"{_head(note, seconds)}\n\n{table(cells)}\n\n{told(asked)}\n"
    tried = NOTES.read_text() if NOTES.exists() else ""
    arguments.out.with_suffix(".md").write_text(f"{page}\n{tried}" if tried else page)
    print(page)
    sys.exit(0 if all(one["ok"] for one in asked.values()) else 1)


def criteria(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Return for every criterion whether it holds and where it does not."""
    worse = [f"{name}: {text}" for name, cell in cells.items() for text in _worse(cell)]
    accuracy = {name: cell for name, cell in cells.items() if name.endswith("test_accuracy")}
    alone = [name for name, cell in accuracy.items() if _r2(cell, ALONE) >= _r2(cell, RIVAL)]
    covered = {name: float(np.mean(cell["coverage"])) for name, cell in cells.items()}
    outside = [f"{k}: {v:.3f}" for k, v in covered.items() if not COVERED[0] <= v <= COVERED[1]]
    short = [
        f"{name}: {_r2(cells[name], HEAD):.3f} of {aim}"
        for name, aim in REACH.items()
        if name in cells and _r2(cells[name], HEAD) < aim
    ]
    return {
        f"{HEAD} at least the best baseline, R^2 and tau, every cell": _verdict(not worse, worse),
        f"{ALONE} reaches {RIVAL} in accuracy R^2, half of the zoos": _verdict(
            2 * len(alone) >= len(accuracy),
            [f"{len(alone)} of {len(accuracy)}: {', '.join(alone)}"],
        ),
        "90 % intervals cover 87 to 93 %, mean of each cell": _verdict(not outside, outside),
        "R^2 reaches what was aimed at": _verdict(not short, short),
    }


def _verdict(ok: bool, found: list[str]) -> dict[str, Any]:
    return {"ok": bool(ok), "found": found}


def _worse(cell: Mapping[str, Any]) -> Iterator[str]:
    for score in ("r2", "tau"):
        own = cell["methods"][HEAD][score]
        best = max(BASELINES, key=lambda name: cell["methods"][name][score])
        theirs = cell["methods"][best][score]
        if own < theirs:
            yield f"{score} {own:.3f} under {theirs:.3f} of {best}"


def _r2(cell: Mapping[str, Any], method: str) -> float:
    return float(cell["methods"][method]["r2"])


def table(cells: Mapping[str, Any]) -> str:
    """Return two markdown tables with a row per cell: scores of each method, and what the chosen heads are."""
    methods = list(next(iter(cells.values()))["methods"])
    lines = ["| of networks | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for name, cell in cells.items():
        found = [cell["methods"][method] for method in methods]
        texts = [f"{m['r2']:.3f} ± {m['r2_spread']:.3f} (τ {m['tau']:.2f})" for m in found]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    lines += [
        "",
        f"| {HEAD} | features and regressor | intervals cover | known kind |",
        "|---|---|---|---|",
    ]
    for name, cell in cells.items():
        said = [
            ", ".join(str(x) for x in cell[key])
            for key in ("chosen", "coverage", "in_distribution")
        ]
        lines.append(f"| {name} | " + " | ".join(said) + " |")
    return "\n".join(lines)


def told(asked: Mapping[str, Any]) -> str:
    """Return the criteria as a list: what holds, and where something does not."""
    return "\n".join(
        f"- {'met' if one['ok'] else 'MISSED'}: {name}"
        + (f" ({'; '.join(one['found'])})" if one["found"] else "")
        for name, one in asked.items()
    )


def _head(note: str, seconds: int) -> str:
    return f"{note}; {seconds} s. R^2 (Kendall's τ) on test networks, mean ± deviation of {SPLITS} splits."


def _zoo(zoo: Zoo, model: SANE) -> dict[str, Any]:
    samples, pool = zoodata.features(zoo, model), evaluation_pool(zoo)
    cells = {}
    for name in PROPERTIES:
        truth = zoodata.targets(zoo, name)
        split = MEMORY.cache(_split, ignore=["samples"])
        key = (zoodata.digest(samples), zoodata.code(*CODE, beside=dataset.__file__))
        cell = _summary([split(name, samples, truth, pool, seed, key) for seed in range(SPLITS)])
        cells[f"{zoo.name} {name}"] = cell
        line = ", ".join(f"{k} {m['r2']:.3f}/{m['tau']:.2f}" for k, m in cell["methods"].items())
        print(f"{time.strftime('%X')} {zoo.name} {name} {line}", file=sys.stderr, flush=True)
    return cells


def _split(
    name: str,
    samples: FeatureDataset,
    truth: Array,
    pool: frozenset[str],
    seed: int,
    key: tuple[str, str],  # noqa: ARG001
) -> dict[str, Any]:
    """Measure one split; `key` stands for samples and code, so that a killed run goes on where it was."""
    networks = np.asarray(samples.networks)
    drawn = np.random.default_rng(seed).permutation(sorted(pool))
    test = np.isin(networks, drawn[: round(TEST_SHARE * len(set(networks)))])
    fit, held = samples.rows(~test), samples.rows(test)
    usable = FeatureDataset(
        features={kind: fit.features[kind] for kind in OWN}, networks=fit.networks
    )
    head = fit_head(name, usable, truth[~test])
    found = {method: zoodata.baseline(method, fit, held, truth[~test]) for method in BASELINES}
    found |= {f"features: {k}": p for k, p in _each_kind(head, fit, held, truth[~test])}
    found = {method: np.clip(p, head.low, head.high) for method, p in found.items()}
    found[HEAD] = head.predict(held.features)
    low, high = head.intervals(held.features).T
    inside = (low <= truth[test]) & (truth[test] <= high)
    support = head.support.contains(stack_features(held.features, head.features))
    return {
        "scores": {method: scores(truth[test], p) for method, p in found.items()},
        "chosen": f"{head.features}/{head.regressor}",
        "coverage": round(float(inside.mean()), 3),
        "in_distribution": round(float(support.mean()), 3),
        "inner": {key: round(value, 4) for key, value in head.scores.items()},
    }


def _each_kind(
    head: PropertyHead, fit: FeatureDataset, held: FeatureDataset, y: Array
) -> Iterator[tuple[str, Array]]:
    """Yield what each set of features predicts with the regressor that cross-validation chose for it."""
    for kind in ("sane", "statistics", "both"):
        tried = [key for key in head.scores if key.startswith(kind + "/")]
        regressor = max(tried, key=lambda key: head.scores[key]).split("/")[1]
        members = fit_members(regressor.removesuffix(SHRUNK), stack_features(fit.features, kind), y)
        yield kind, predict(members, stack_features(held.features, kind))


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    methods: dict[str, dict[str, Any]] = {}
    for method in runs[0]["scores"]:
        each = {key: [run["scores"][method][key] for run in runs] for key in ("r2", "tau")}
        methods[method] = {key: float(np.mean(x)) for key, x in each.items()}
        methods[method] |= {f"{key}_spread": float(np.std(x)) for key, x in each.items()}
        methods[method] |= {f"{key}_each": x for key, x in each.items()}
    kept = ("chosen", "coverage", "in_distribution", "inner")
    return {"methods": methods} | {key: [run[key] for run in runs] for key in kept}


if __name__ == "__main__":
    main()
