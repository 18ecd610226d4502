"""Does the gate know when generated weights help?

    python benchmarks/gate.py --data ../shared/data [--stage choose] [--stage test]

A run: a network, a task, prompts good and bad (trained, barely trained, untrained, shuffled), few or many images. The
gate reads the scores of the race on held-out images; what is true is told by test images: does the best generated
candidate, after one and two epochs on all training images (mean, six orders of images), beat the default initialisation
that the same race prefers (classifier fitted or not)? It is fitted on runs on animals, USPS, grey CIFAR-10 and digits
(`tools/release/fit_gate.py`), and tested on Fashion-MNIST, pneumonia and MNIST, with other seeds and sizes; features were
chosen on runs of the former and on a first round of the latter (`choose`), and the figures are those of a second round. The test images of pneumonia come from another source
than its training images, which no gate can see: all are mixed and parted anew. A finished run is kept in runs/.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoodata
from gate_runs import FITTING, features, helped, measured, prompt_zoos, specs
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

from sane_plugins.initialize import BenefitForecast

TEST = ("fashion_mnist", "pneumoniamnist_subset", "mnist")
SHARE, CLEAR = 0.85, 0.01
COMPARED = {
    "won": "who won the race",
    "race": "margins of the race",
    "paired": "paired margin of the folds",
    "all": "margins of the race and of the folds",
    "folds": "who won, and the paired margin (ships)",
}
SHIPPED = Path(__file__).parents[1] / "sane_plugins" / "data" / "gate.json"


def main() -> None:
    """Run what is missing; compare features, or test what ships."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--zoos", type=Path, default=zoodata.RUNS / "zoos")
    parser.add_argument("--stage", choices=["choose", "test"], action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stages = arguments.stage or ["choose", "test"]
    data, zoos = arguments.data, prompt_zoos(arguments.data, arguments.zoos)
    if "choose" in stages:
        first = measured(specs(TEST, (600, 4000), 1000), data, zoos)
        _choose(measured(FITTING, data, zoos), first)
    if "test" in stages:
        _test(measured(specs(TEST, (800, 3500), 2000), data, zoos))


def _choose(fit: list[dict[str, Any]], first: list[dict[str, Any]]) -> None:
    """Tell how features do on the fitting runs, a data set left out in turn, and on a first round of others."""
    y, truth = helped(fit), helped(first)
    lines = [
        f"| features | right on {len(fit)} fitting runs, a data set left out in turn | Brier score"
        f" | right on {len(first)} runs of the first round | Brier score |",
        "|---|---|---|---|---|",
    ]
    for name, label in COMPARED.items():
        x, model = features(fit, name), LogisticRegression()
        groups = [run["dataset"] for run in fit]
        p = cross_val_predict(
            model, x, y, groups=groups, cv=LeaveOneGroupOut(), method="predict_proba"
        )[:, 1]
        q = model.fit(x, y).predict_proba(features(first, name))[:, 1]
        cells = [f(*pair) for pair in ((p, y), (q, truth)) for f in (_right, _brier)]
        lines.append(f"| {label} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")
    (zoodata.RUNS / "gate-choice.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _right(chance: Any, truth: Any) -> float:
    return float(((chance >= 0.5) == truth).mean())


def _brier(chance: Any, truth: Any) -> float:
    return float(((chance - truth) ** 2).mean())


def _test(runs: list[dict[str, Any]]) -> None:
    told = json.loads(SHIPPED.read_text())
    y = helped(runs)
    chance = _chances(runs, told, "folds")
    said = np.array([found.helps for found in chance])
    race_only = np.array([found.helps for found in _chances(runs, told, "race")])
    over_default = np.array([run["gain_over_default"] > 0 for run in runs])
    clear = np.array([abs(run["gain"]) >= CLEAR for run in runs])
    won = np.array([run["won"] for run in runs])
    is_called = np.array([not found.is_close for found in chance])
    right, called = float((said == y).mean()), float((said == y)[is_called].mean())
    halves = [float((said == y)[y == side].mean()) for side in (True, False)]
    brier = _brier(np.array([found.probability for found in chance]), y)
    wrong = [abs(run["gain"]) for run, a, b in zip(runs, said, y, strict=True) if a != b]
    text = "\n".join(
        [
            f"| {len(runs)} runs on {', '.join(TEST)} | |",
            "|---|---|",
            f"| generated weights helped | {y.mean():.3f} |",
            f"| gate right where it is not too close to call ({is_called.sum()} runs) | {called:.3f} |",
            f"| gate right where it has to answer | {right:.3f} |",
            f"| gate right where they helped, where not | {halves[0]:.3f}, {halves[1]:.3f} |",
            f"| always saying the commoner answer | {max(y.mean(), 1 - y.mean()):.3f} |",
            f"| saying what won the race | {(won == y).mean():.3f} |",
            f"| gate on the race alone, without folds | {(race_only == y).mean():.3f} |",
            f"| gate right where gain or loss is at least {CLEAR:.0%} ({clear.sum()} runs)"
            f" | {(said == y)[clear].mean():.3f} |",
            f"| helped against one plain default initialisation | {over_default.mean():.3f} |",
            f"| gate right about that | {(said == over_default).mean():.3f} |",
            f"| Brier score | {brier:.3f} |",
            f"| largest gain or loss where it was wrong | {max(wrong, default=0):.3f} |",
            "",
            f"- {'met' if called >= SHARE and is_called.sum() >= 40 else 'MISSED'}: the gate is right on {SHARE:.0%} of at"
            " least 40 runs, where it is not too close to call",
            f"- {'met' if right >= SHARE else 'MISSED'}: and where it has to answer",
            "",
        ]
    )
    text = (zoodata.RUNS / "gate-choice.md").read_text() + "\n" + text
    (zoodata.RESULTS / "gate.md").write_text(text)
    (zoodata.RESULTS / "gate.json").write_text(json.dumps({"gate": told, "test": runs}) + "\n")
    print(text)
    sys.exit(called < SHARE)


def _chances(runs: list[dict[str, Any]], told: dict[str, Any], name: str) -> list[BenefitForecast]:
    score = features(runs, name) @ np.array(told[name]["weights"]) + told[name]["bias"]
    return [BenefitForecast(float(chance)) for chance in 1 / (1 + np.exp(-score))]


if __name__ == "__main__":
    main()
