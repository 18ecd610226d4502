"""How well properties are predicted from weights: heads against baselines, split by network.

    python benchmarks/properties.py --data ../shared/data [--sane FILE]

Each split draws its test networks (30 % of a zoo) from the evaluation pool, which the shipped SANE has not
seen; all other networks fit. The head's features and regressor are chosen by cross-validation among those
networks alone. Writes properties.json and properties.md in benchmarks/results/, and prints the table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sane_plugins.errors import ZooError
from sane_plugins.latent import checkpoint
from sane_plugins.latent.model import SANE, SANEConfig
from sane_plugins.tasks import embed, statistics
from sane_plugins.tasks.heads import STRUCTURE, Samples, fit_head, fit_members, group_folds, join
from sane_plugins.tasks.predict import fingerprint
from sane_plugins.tasks.regressors import Array, predict
from sane_plugins.zoo.store import Zoo, evaluation_pool, import_published

HERE = Path(__file__).parent
ZOOS = ("mnist-cnn", "cifar10-cnn")
PROPERTIES = ("test_accuracy", "epoch", "gap")
SPLITS = 3
TEST_SHARE = 0.3
RIVAL = "s(W), boosting"
BASELINES = ("W", "s(W)")
KINDS = (*BASELINES, "statistics", "sane", STRUCTURE)
PENALTIES = np.logspace(-1, 6, 8)
HEAD = "chosen head"


def main() -> None:
    """Measure every cell, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sane", type=Path, help="a SANE file; the embedded one by default")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "properties.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start, model, note = time.perf_counter(), *_sane(arguments.sane)
    result: dict[str, Any] = {
        "sane": fingerprint(model),
        "note": note,
        "splits": SPLITS,
        "cells": {},
    }
    for name in ZOOS:
        result["cells"] |= _zoo(import_published(arguments.data / "zoos" / f"{name}.json"), model)
    result["seconds"] = round(time.perf_counter() - start)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(table(result["cells"]) + "\n")
    print(table(result["cells"]))
    print(
        f"\n{note}; {result['seconds']} s; R^2 on test networks, mean ± deviation of {SPLITS} splits."
    )
    sys.exit(0 if all(holds(cell) for cell in result["cells"].values()) else 1)


def holds(cell: Mapping[str, Any]) -> bool:
    """Tell whether the chosen head is at least as good as boosting on s(W) in this run."""
    return bool(cell["methods"][HEAD]["r2"] >= cell["methods"][RIVAL]["r2"])


def table(cells: Mapping[str, Any]) -> str:
    """Return the cells as a markdown table, methods in rows."""
    lines = ["| method | " + " | ".join(cells) + " |", "|---" * (len(cells) + 1) + "|"]
    methods = next(iter(cells.values()))["methods"]
    for method in methods:
        found = [cell["methods"][method] for cell in cells.values()]
        texts = [f"{m['r2']:.3f} ± {m['r2_spread']:.3f} (τ {m['tau']:.2f})" for m in found]
        lines.append(f"| {method} | " + " | ".join(texts) + " |")
    for key in ("chosen", "coverage", "in_distribution"):
        told = [", ".join(str(x) for x in cell[key]) for cell in cells.values()]
        lines.append(f"| {key} | " + " | ".join(told) + " |")
    return "\n".join(lines)


def _sane(path: Path | None) -> tuple[SANE, str]:
    """Return the SANE to test, and a note; without any, a random one keeps the rest measurable."""
    try:
        return (
            checkpoint.load(path) if path else checkpoint.embedded()
        ), f"SANE: {path or 'embedded'}"
    except (ZooError, FileNotFoundError):
        if path:
            raise
    torch.manual_seed(0)
    return SANE(SANEConfig()).eval(), "SANE: NONE, random weights in its place"


def _zoo(zoo: Zoo, model: SANE) -> dict[str, Any]:
    finite = zoo.where(lambda entry: bool(entry.properties["finite"]))
    print(
        f"{zoo.name}: {len(zoo) - len(finite)} of {len(zoo)} networks dropped, not finite",
        file=sys.stderr,
    )
    samples, pool = features(finite, model), evaluation_pool(zoo)
    cells = {}
    for name in PROPERTIES:
        targets = np.array([float(entry.properties[name]) for entry in finite.entries])
        runs = [_split(name, samples, targets, pool, seed) for seed in range(SPLITS)]
        cells[f"{zoo.name} {name}"] = _summary(runs)
        print(
            f"{zoo.name} {name} {_line(cells[f'{zoo.name} {name}'])}", file=sys.stderr, flush=True
        )
    return cells


def features(zoo: Zoo, model: SANE) -> Samples:
    """Return flat weights, s(W), statistics and SANE features of a zoo, kept in runs/ between calls."""
    code = [Path(str(m.__file__)).read_text() for m in (embed, statistics)]
    code += [
        (Path(statistics.__file__).parent / "probes.py").read_text(),
        Path(__file__).read_text(),
    ]
    key = hashlib.sha256(
        "".join([*code, *KINDS, fingerprint(model), str(len(zoo))]).encode()
    ).hexdigest()[:12]
    path = HERE.parent / "runs" / f"features-{zoo.name}-{key}.npz"
    networks = [entry.network for entry in zoo.entries]
    if path.exists():
        return Samples(features=dict(np.load(path)), networks=networks)
    found = _features(zoo, model)
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **found)  # type: ignore[arg-type]
    return Samples(features=found, networks=networks)


def _features(zoo: Zoo, model: SANE) -> dict[str, Array]:
    rows: dict[str, list[Array]] = {name: [] for name in KINDS}
    encoder, options = embed.SaneEncoder(model), embed.EncodeOptions()
    for entry in zoo.entries:
        graph = zoo.graph(entry)
        rows["W"].append(torch.cat([x.ravel() for _, x in graph.items()]).numpy())
        rows["s(W)"].append(statistics.plain(graph).numpy())
        rows["statistics"].append(statistics.statistics(graph).numpy())
        rows[STRUCTURE].append(statistics.structure(graph))
        rows["sane"].append(encoder.features(graph, options).numpy())
    return {name: np.stack(x) for name, x in rows.items()}


def _split(
    name: str, samples: Samples, targets: Array, pool: frozenset[str], seed: int
) -> dict[str, Any]:
    networks = np.asarray(samples.networks)
    drawn = np.random.default_rng(seed).permutation(sorted(pool))
    test = np.isin(networks, drawn[: round(TEST_SHARE * len(set(networks)))])
    fit, held = samples.rows(~test), samples.rows(test)
    known = {"sane", "statistics", STRUCTURE}
    usable = Samples(
        features={k: x for k, x in fit.features.items() if k in known}, networks=fit.networks
    )
    head = fit_head(name, usable, targets[~test])
    found = {
        method: np.clip(values, head.low, head.high)
        for method, values in _baselines(fit, held, targets[~test]).items()
    }
    for kind in ("sane", "statistics", "both"):
        best = max(
            (k for k in head.scores if k.startswith(kind + "/")), key=lambda k: head.scores[k]
        )
        x = [join(part.features, kind) for part in (fit, held)]
        members = fit_members(best.split("/")[1], x[0], targets[~test])
        found[f"features: {kind}"] = np.clip(predict(members, x[1]), head.low, head.high)
    found[HEAD] = head.predict(held.features)
    inside = np.abs(found[HEAD] - targets[test]) <= head.radius
    support = head.support.holds(join(held.features, head.features))
    return {
        "scores": {method: _scores(targets[test], p) for method, p in found.items()},
        "chosen": f"{head.features}/{head.regressor}", "coverage": round(float(inside.mean()), 3),
        "in_distribution": round(float(support.mean()), 3),
        "inner": {key: round(value, 4) for key, value in head.scores.items()},
    }  # fmt: skip


def _baselines(fit: Samples, held: Samples, y: Array) -> dict[str, Array]:
    boosting = GradientBoostingRegressor(
        n_estimators=300, max_depth=4, subsample=0.7, random_state=0
    ).fit(fit.features["s(W)"], y)
    ridges = {
        f"{kind}, ridge": _ridge(fit, kind, y).predict(held.features[kind]) for kind in BASELINES
    }
    return {**ridges, RIVAL: boosting.predict(held.features["s(W)"])}


def _ridge(fit: Samples, kind: str, y: Array) -> Any:
    """Fit ridge regression whose penalty is chosen on networks that a fold holds out (paper section 4.1)."""
    folds = [
        (np.flatnonzero(~test), np.flatnonzero(test)) for test in group_folds(fit.networks, 5, 0)
    ]
    model = make_pipeline(StandardScaler(), Ridge())
    search = GridSearchCV(
        model, {"ridge__alpha": PENALTIES}, cv=folds, scoring="neg_mean_squared_error"
    )
    return search.fit(fit.features[kind], y)


def _scores(truth: Array, predicted: Array) -> dict[str, float]:
    left = float(((truth - predicted) ** 2).sum())
    r2 = 1 - left / float(((truth - truth.mean()) ** 2).sum())
    return {"r2": r2, "tau": float(kendalltau(truth, predicted).statistic)}


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    methods = {}
    for method in runs[0]["scores"]:
        r2 = [run["scores"][method]["r2"] for run in runs]
        tau = [run["scores"][method]["tau"] for run in runs]
        methods[method] = {
            "r2": float(np.mean(r2)), "r2_spread": float(np.std(r2)), "tau": float(np.mean(tau)),
            "r2_each": r2,
        }  # fmt: skip
    told = {
        key: [run[key] for run in runs]
        for key in ("chosen", "coverage", "in_distribution", "inner")
    }
    return {"methods": methods, **told}


def _line(cell: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {m['r2']:.3f}" for name, m in cell["methods"].items())


if __name__ == "__main__":
    main()
