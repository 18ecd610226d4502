"""Do experts for each kind of networks beat one head for all, and can networks of an unknown kind be ranked?

    python benchmarks/kinds.py --data DIR [--zoos runs/zoos] [--splits 3] [ZOO...]

Heads of layer statistics are fitted to the zoos together: an expert for each kind (`fit_kinds`), which is
the head that is fitted to that kind alone, and one head for all (`fit_head`). Splits are those of
`properties.py`. Then each zoo is left out, and its networks are ranked by what is fitted to the others:
Kendall's tau over all checkpoints, and over those of the last epoch. Rivals: the sum of squared weights and the mean
logarithm of the squared norms of matrices, each with the sign that the other zoos ask for, and boosting on
s(W), fitted to values or to ranks within each zoo. Writes kinds.json and kinds.md in benchmarks/results/. A killed run
goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoodata
from scipy.special import ndtri
from scipy.stats import kendalltau, rankdata
from zoodata import MEMORY, PROPERTIES, RESULTS, RUNS

from sane_plugins.properties import FeatureDataset, PropertyHead, dataset, fit_head, fit_kinds
from sane_plugins.properties.dataset import STRUCTURE
from sane_plugins.properties.heads.kinds_head import KindsHead
from sane_plugins.properties.regressors import Array, fit_forest, predict
from sane_plugins.zoo import Zoo, evaluation_pool

TEST_SHARE = 0.3
CODE = ("kinds_fit", "numeric_head", "cross_validation", "dataset", "conformal", "regressors")
OURS = "ranker"
RIVALS = ("sum of squares", "log norm", "s(W), values", "s(W), ranks")
Data = dict[str, Any]


def main() -> None:
    """Measure what is asked for, and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--zoos", type=Path, default=RUNS / "zoos")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("names", metavar="ZOO", nargs="*", help="all that are there by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    zoos = zoodata.zoos(arguments.data, arguments.zoos, arguments.names or None)
    data = {zoo.name: read(zoo) for zoo in zoos}
    result: dict[str, Any] = {"zoos": [*data], "ranking": {}, "experts": {}}
    key = "-".join(zoodata.digest(x["samples"]) for x in data.values())
    key += zoodata.code(*CODE, beside=dataset.__file__)
    ranked = MEMORY.cache(ranking, ignore=["data"])
    for name in PROPERTIES:
        for zoo in data:
            result["ranking"][f"{zoo} {name}"] = ranked(data, zoo, name, key)
            print(zoo, name, result["ranking"][f"{zoo} {name}"], flush=True)
            write(result)
    split = MEMORY.cache(_split, ignore=["data"])
    for seed in range(arguments.splits):
        for name in PROPERTIES:
            for zoo, cell in split(data, name, seed, key).items():
                result["experts"].setdefault(f"{zoo} {name}", []).append(cell)
                print(seed, zoo, name, cell, flush=True)
            write(result)


def read(zoo: Zoo) -> Data:
    """Return features, norms and properties of a zoo's networks."""
    plain = zoodata.plain_features(zoo)
    networks = [f"{zoo.name}/{entry.network}" for entry in zoo.entries]
    own = {kind: plain[kind] for kind in ("statistics", STRUCTURE)}
    return {
        "samples": FeatureDataset(features=own, networks=networks),
        "s(W)": plain["s(W)"],
        "norms": np.array([norms(zoo.graph(entry)) for entry in zoo.entries]),
        "pool": {f"{zoo.name}/{network}" for network in evaluation_pool(zoo)},
        **{name: zoodata.targets(zoo, name) for name in PROPERTIES},
    }


def norms(graph: Any) -> tuple[float, float]:
    """Return the sum of squared weights, and the mean log10 of the squared norms of matrices."""
    squares = [float((x.double() ** 2).sum()) for _, x in graph.items()]
    matrices = [
        float((graph.tensors[p.key].double() ** 2).sum()) for p in graph.params if len(p.shape) > 1
    ]
    return sum(squares), float(np.mean(np.log10(np.maximum(matrices, 1e-12))))


def ranking(
    data: dict[str, Data],
    left_out: str,
    name: str,
    key: str,  # noqa: ARG001
) -> dict[str, list[float]]:
    """Return tau over all checkpoints and over those of the last epoch, by what ranks a zoo left out."""
    others = [x for key, x in data.items() if key != left_out]
    zoo, truth = data[left_out], data[left_out][name]
    values = np.concatenate([x[name] for x in others])
    ranks = np.concatenate([normal_ranks(x[name]) for x in others])
    told: dict[str, Array] = {}
    for i, rival in enumerate(RIVALS[:2]):
        sign = np.sign(np.mean([tau(x["norms"][:, i], x[name]) for x in others]))
        told[rival] = sign * zoo["norms"][:, i]
    moments = np.concatenate([x["s(W)"] for x in others])
    for rival, y in zip(RIVALS[2:], (values, ranks), strict=True):
        told[rival] = zoodata.boosting(moments, y).predict(zoo["s(W)"])
    x = np.concatenate([o["samples"].features["statistics"] for o in others]).astype(np.float32)
    own = zoo["samples"].features["statistics"].astype(np.float32)
    told["statistics, values"] = predict(fit_forest(x, values), own)
    told[OURS] = predict(fit_forest(x, ranks), own)
    last = zoo["epoch"] == zoo["epoch"].max()
    return {key: [tau(p, truth), tau(p[last], truth[last])] for key, p in told.items()}


def normal_ranks(y: Array) -> Array:
    """Return ranks as normal scores, as the ranker of `fit_kinds` is fitted to."""
    return np.asarray(ndtri((rankdata(y) - 0.5) / len(y)))


def tau(a: Array, b: Array) -> float:
    """Return Kendall's tau, 0 where one is constant."""
    found = float(kendalltau(a, b).statistic)
    return found if np.isfinite(found) else 0.0


def _split(data: dict[str, Data], name: str, seed: int, key: str) -> dict[str, Any]:  # noqa: ARG001
    fits, tests = [], {}
    for zoo, x in data.items():
        networks = np.asarray(x["samples"].networks)
        drawn = np.random.default_rng(seed).permutation(sorted(x["pool"]))
        test = np.isin(networks, drawn[: round(TEST_SHARE * len(set(networks)))])
        fits.append((x["samples"].rows(~test), x[name][~test]))
        tests[zoo] = (x["samples"].rows(test), x[name][test])
    together = FeatureDataset(
        features={
            kind: np.concatenate([s.features[kind] for s, _ in fits])
            for kind in ("statistics", STRUCTURE)
        },
        networks=[network for s, _ in fits for network in s.networks],
    )
    targets = np.concatenate([y for _, y in fits])
    fit_one = partial(fit_head, name, features="statistics")
    experts = fit_kinds(name, together, targets, fit_one)
    one = fit_one(together, targets)
    return {
        zoo: {"experts": _told(experts, *test), "one head": _told(one, *test)}
        for zoo, test in tests.items()
    }


def _told(head: PropertyHead | KindsHead, held: FeatureDataset, truth: Array) -> dict[str, float]:
    low, high = head.intervals(held.features).T
    scores = zoodata.scores(truth, head.predict(held.features))
    return {
        **scores,
        "coverage": float(((low <= truth) & (truth <= high)).mean()),
        "width": float((high - low).mean()),
    }


def write(result: dict[str, Any]) -> None:
    """Write the figures and their tables."""
    (RESULTS / "kinds.json").write_text(json.dumps(result, indent=1) + "\n")
    names = [*RIVALS, "statistics, values", OURS]
    lines = [
        "Layer statistics alone. Ranks of a zoo that is left out: Kendall's τ over all checkpoints, and over"
        " those of the last epoch.",
        "",
        f"| left out | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for cell, told in result["ranking"].items():
        is_constant = not any(told[x][1] for x in names)  # the epoch, at the last epoch
        shown = [
            f"{told[x][0]:.2f}" + ("" if is_constant else f", {told[x][1]:.2f}") for x in names
        ]
        lines.append(f"| {cell} | {' | '.join(shown)} |")
    if result["experts"]:
        lines += _experts_table(result["experts"])
    (RESULTS / "kinds.md").write_text("\n".join(lines) + "\n")


def _experts_table(experts: dict[str, Any]) -> list[str]:
    lines = [
        "",
        "All zoos fitted together, mean over splits. An expert is the head that is fitted to its kind alone.",
        "",
        "| zoo | splits | experts, R² (τ) | one head, R² (τ) | experts cover | one head covers |"
        " width, experts / one head |",
        "|---|---|---|---|---|---|---|",
    ]
    for zoo, cells in experts.items():
        mean = {
            who: {key: float(np.mean([x[who][key] for x in cells])) for key in cells[0][who]}
            for who in ("experts", "one head")
        }
        a, b = mean["experts"], mean["one head"]
        lines.append(
            f"| {zoo} | {len(cells)} | {a['r2']:.3f} ({a['tau']:.2f}) | {b['r2']:.3f} ({b['tau']:.2f})"
            f" | {a['coverage']:.1%} | {b['coverage']:.1%} | {a['width'] / b['width']:.2f} |"
        )
    return lines


if __name__ == "__main__":
    main()
