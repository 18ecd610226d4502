"""Is a head for many zoos as good as one for each, and can networks of an unknown kind be ranked?

    python benchmarks/kinds.py --data DIR [--zoos runs/zoos] [--splits 3] [ZOO...]

A head is fitted to all zoos together, as the one that ships (`fit_kinds`), and one to each zoo alone (`fit_head`); which
features they read is chosen by cross-validation. The first is asked as it is, and with the name of the zoo (`predict --like`).
Splits are those of `properties.py`. Before that the zoos of one architecture are left out, and their networks are ranked by what is fitted to the others:
Kendall's tau over all checkpoints, and over those of the last epoch. Rivals: the sum of squared weights and the mean
logarithm of the squared norms of matrices, each with the sign that the other zoos ask for, and boosting on
s(W), fitted to values or to ranks within each zoo. Writes kinds.json and kinds.md in benchmarks/results/. A killed run
goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoodata
from scipy.special import ndtri
from scipy.stats import kendalltau, rankdata
from zoodata import MEMORY, PROPERTIES, RESULTS, RUNS

from sane_plugins.autoencoder import SANE, embedded_sane
from sane_plugins.properties import FeatureDataset, PropertyHead, dataset, fit_head, fit_kinds
from sane_plugins.properties.dataset import STRUCTURE
from sane_plugins.properties.heads.kinds_head import KindsHead
from sane_plugins.properties.kinds import is_alike
from sane_plugins.properties.regressors import Array, fit_forest, predict
from sane_plugins.zoo import Zoo, evaluation_pool

TEST_SHARE = 0.3
CODE = ("kinds_fit", "numeric_head", "cross_validation", "dataset", "conformal", "regressors")
OWN = ("sane", "statistics", STRUCTURE)
JOINT = ("told the zoo", "one for all")
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
    model = embedded_sane()
    data = {zoo.name: read(zoo, model) for zoo in zoos}
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


def read(zoo: Zoo, model: SANE) -> Data:
    """Return features, norms and properties of a zoo's networks."""
    found = zoodata.features(zoo, model).features
    networks = [f"{zoo.name}/{entry.network}" for entry in zoo.entries]
    own = {kind: found[kind] for kind in OWN}
    return {
        "samples": FeatureDataset(features=own, networks=networks),
        "s(W)": found["s(W)"],
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
    zoo, truth = data[left_out], data[left_out][name]
    others = [x for x in data.values() if not _is_of_one_kind(x, zoo)]
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


def _is_of_one_kind(a: Data, b: Data) -> bool:
    structure = a["samples"].features[STRUCTURE]
    return bool(is_alike(structure, b["samples"].features[STRUCTURE][0]).any())


def normal_ranks(y: Array) -> Array:
    """Return ranks as normal scores, as the ranker of `fit_kinds` is fitted to."""
    return np.asarray(ndtri((rankdata(y) - 0.5) / len(y)))


def tau(a: Array, b: Array) -> float:
    """Return Kendall's tau, 0 where one is constant."""
    found = float(kendalltau(a, b).statistic)
    return found if np.isfinite(found) else 0.0


def _split(data: dict[str, Data], name: str, seed: int, key: str) -> dict[str, Any]:
    fits, tests = {}, {}
    for zoo, x in data.items():
        networks = np.asarray(x["samples"].networks)
        drawn = np.random.default_rng(seed).permutation(sorted(x["pool"]))
        test = np.isin(networks, drawn[: round(TEST_SHARE * len(set(networks)))])
        fits[zoo] = (x["samples"].rows(~test), x[name][~test])
        tests[zoo] = (x["samples"].rows(test), x[name][test])
    samples = [x for x, _ in fits.values()]
    together = FeatureDataset(
        features={kind: np.concatenate([x.features[kind] for x in samples]) for kind in OWN},
        networks=[network for x in samples for network in x.networks],
        zoos=[zoo for zoo, (x, _) in fits.items() for _ in x.networks],
    )
    fit_one = MEMORY.cache(_fit_one, ignore=["samples"])
    targets = np.concatenate([y for _, y in fits.values()])
    kinds = fit_kinds(
        name, together, targets, lambda x, y: fit_one(name, x, y, zoodata.digest(x), key)
    )
    return {
        zoo: {
            "one for all": _told(kinds, *test),
            "told the zoo": _told(
                kinds.like(zoo) if isinstance(kinds, KindsHead) else kinds, *test
            ),
            "its own": _told(fit_one(name, *fits[zoo], zoodata.digest(fits[zoo][0]), key), *test),
        }
        for zoo, test in tests.items()
    }


def _fit_one(
    name: str,
    samples: FeatureDataset,
    y: Array,
    digest: str,  # noqa: ARG001
    key: str,  # noqa: ARG001
) -> PropertyHead:
    """Fit a head; `digest` and `key` stand for samples and code, so that a killed run goes on where it was."""
    return fit_head(name, samples, y)


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
        "Layer statistics alone. Ranks of a zoo that is left out, as are others of its architecture: Kendall's τ over"
        " all checkpoints, and over those of the last epoch.",
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
        "Zoos whose heads were fitted together, asked without and with the zoo's name, and each alone: R² (τ), mean"
        " over splits; paired differences with the error of their mean; what intervals of 90 % cover.",
        "",
        "| zoo | splits | its own | told the zoo | one for all | differences from its own | cover |",
        "|---|---|---|---|---|---|---|",
    ]
    for zoo, cells in experts.items():
        shown = [
            f"{_mean(cells, who, 'r2'):.3f} ({_mean(cells, who, 'tau'):.2f})"
            for who in ("its own", *JOINT)
        ]
        apart = [_apart([x[who]["r2"] - x["its own"]["r2"] for x in cells]) for who in JOINT]
        covered = [f"{_mean(cells, who, 'coverage'):.1%}" for who in ("its own", *JOINT)]
        lines.append(
            f"| {zoo} | {len(cells)} | {' | '.join(shown)} | {', '.join(apart)} | {', '.join(covered)} |"
        )
    lines.append("")
    for zoo in dict.fromkeys(cell.rpartition(" ")[0] for cell in experts):
        told = [x for cell, cells in experts.items() if cell.startswith(f"{zoo} ") for x in cells]
        covered = [f"{_mean(told, who, 'coverage'):.1%}" for who in JOINT]
        lines.append(
            f"- {zoo}: intervals of 90 % cover {covered[0]} of its networks where the zoo is told, else {covered[1]}"
            " (over properties and splits)."
        )
    return lines


def _mean(cells: list[dict[str, Any]], who: str, what: str) -> float:
    return float(np.mean([x[who][what] for x in cells]))


def _apart(differences: list[float]) -> str:
    error = np.std(differences, ddof=1) / np.sqrt(len(differences)) if len(differences) > 1 else 0
    return f"{np.mean(differences):+.4f} ± {error:.4f}"


if __name__ == "__main__":
    main()
