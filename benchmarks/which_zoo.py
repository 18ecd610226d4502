"""Do weights tell which of two zoos of one architecture a network is of, and does it matter?

    python benchmarks/which_zoo.py --data DIR [--zoos runs/zoos]

Small CNNs of one architecture, trained on MNIST and on animal silhouettes; splits are those of `properties.py`. Which zoo test
networks are of is told by the distance to either zoo's networks (of `in_distribution`), by trees and by boosting. Then properties are predicted by each
zoo's own expert, by one expert for both, by the expert of the nearer zoo, and by both experts weighted by the probability of their
zoo. Features are those of `both`, experts boosting and forest. Writes which_zoo.json and which_zoo.md in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoodata
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier
from zoodata import PROPERTIES, RESULTS, RUNS

from sane_plugins.autoencoder import embedded_sane
from sane_plugins.properties.dataset import FOLDS, group_folds, stack_features
from sane_plugins.properties.fitting.cross_validation import fit_members
from sane_plugins.properties.heads.in_distribution import fit_support
from sane_plugins.properties.regressors import Array, predict
from sane_plugins.zoo import Zoo, evaluation_pool

ZOOS = ["mnist-cnn", "animals-cnn"]
SPLITS, TEST_SHARE = 3, 0.3
EXPERT = "boosting+forest"
WAYS = ("its own", "one for both", "of the nearer zoo", "weighted by probability")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--zoos", type=Path, default=RUNS / "zoos")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    zoos, model = zoodata.zoos(arguments.data, arguments.zoos, ZOOS), embedded_sane()
    samples = [zoodata.features(zoo, model) for zoo in zoos]
    x = np.concatenate([stack_features(s.features, "both") for s in samples])
    own = np.repeat([0, 1], [len(s.networks) for s in samples])
    networks = np.array([f"{i}/{name}" for i, s in enumerate(samples) for name in s.networks])
    targets = {
        name: np.concatenate([zoodata.targets(zoo, name) for zoo in zoos]) for name in PROPERTIES
    }
    told: dict[str, list[list[float]]] = defaultdict(list)
    r2: dict[str, list[float]] = defaultdict(list)
    for seed in range(SPLITS):
        test = _test_rows(zoos, networks, seed)
        chances = _chances(x, own, networks, test)
        for way, chance in chances.items():
            right = (chance > 0.5) == own[test]
            told[way].append([float(right[own[test] == i].mean()) for i in (0, 1)])
        for name, y in targets.items():
            for way, predicted in _predictions(x, y, own, test, chances).items():
                for i, zoo in enumerate(ZOOS):
                    rows = own[test] == i
                    found = zoodata.scores(y[test][rows], predicted[rows])["r2"]
                    r2[f"{zoo} {name}/{way}"].append(found)
    (RESULTS / "which_zoo.json").write_text(json.dumps({"told": told, "r2": r2}, indent=1) + "\n")
    page = _page(told, r2)
    (RESULTS / "which_zoo.md").write_text(page)
    print(page)


def _test_rows(zoos: list[Zoo], networks: Array, seed: int) -> Array:
    chosen = []
    for i, zoo in enumerate(zoos):
        drawn = np.random.default_rng(seed).permutation(sorted(evaluation_pool(zoo)))
        chosen += [f"{i}/{name}" for name in drawn[: round(TEST_SHARE * len(zoo.networks))]]
    return np.asarray(np.isin(networks, chosen))


def _chances(x: Array, own: Array, networks: Array, test: Array) -> dict[str, Array]:
    """Return the probability (N,) that test networks are of the second zoo, by each way of telling."""
    supports = []
    for i in (0, 1):
        rows = ~test & (own == i)
        supports.append(fit_support(x[rows], group_folds(list(networks[rows]), FOLDS, 0)))
    far = [s.distance(x[test]) / s.held_out[99] for s in supports]
    models = {
        "trees": ExtraTreesClassifier(300, min_samples_leaf=3, max_features=0.3, random_state=0),
        "boosting": HistGradientBoostingClassifier(
            max_iter=200, learning_rate=0.08, max_leaf_nodes=15, random_state=0
        ),
    }
    return {"distance": (far[1] < far[0]).astype(float)} | {
        name: model.fit(x[~test], own[~test]).predict_proba(x[test])[:, 1]
        for name, model in models.items()
    }


def _predictions(
    x: Array, y: Array, own: Array, test: Array, chances: dict[str, Array]
) -> dict[str, Array]:
    """Return what each way predicts for test networks (N,)."""
    fits = [~test & (own == 0), ~test & (own == 1), ~test]
    first, second, both = (predict(fit_members(EXPERT, x[r], y[r]), x[test]) for r in fits)

    def weighted(chance: Array) -> Array:
        return np.asarray((1 - chance) * first + chance * second)

    ways = (
        np.where(own[test] == 0, first, second),
        both,
        weighted(chances["distance"]),
        weighted(chances["boosting"]),
    )
    return dict(zip(WAYS, ways, strict=True))


def _page(told: dict[str, Any], r2: dict[str, list[float]]) -> str:
    lines = [
        f"Which zoo a network is of, told from its weights (mean of {SPLITS} splits):",
        "",
        f"| by | right of {ZOOS[0]} | right of {ZOOS[1]} |",
        "|---|---|---|",
    ]
    for way, shares in told.items():
        lines.append(f"| {way} | {' | '.join(f'{x:.0%}' for x in np.mean(shares, axis=0))} |")
    lines += ["", "R², by expert:", "", f"| zoo | {' | '.join(WAYS)} |", "|---" * 5 + "|"]
    for cell in dict.fromkeys(key.partition("/")[0] for key in r2):
        found = [r2[f"{cell}/{way}"] for way in WAYS]
        texts = [f"{np.mean(v):.3f} ± {np.std(v):.3f}" for v in found]
        lines.append(f"| {cell} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
