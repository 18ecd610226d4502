"""Does the gate know when generated weights help, and when transferred ones do?

    python benchmarks/gate.py --data ../shared/data [--stage choose|test|publish]

A run: a network, a task, prompts good and bad (trained, barely trained, untrained, shuffled). Half of the runs are on real
architectures at 32 or 64 pixels, with files as prompts, at the rung that 45 seconds on two cores allow; the others on small networks with
zoos, at rung 0. The gate speaks of each family apart: of generated weights (SANE candidates alone) and of transferred ones, where a default with
a fitted classifier was trained beside them. Where no transfer leads before training none is trained, and that is said: the answer is no. A run of
which nothing is said is silent. What is true is told by test images: does the family's best
candidate beat the best default of the same race after one and two epochs on all training images (mean over orders of images, statistics measured
anew)? It is fitted on settling tasks (`tools/release/fit_gate.py`); features are chosen on these (`choose`), a task left out in turn, and tested on tasks that
nothing was settled on (`test`). A finished run is kept in runs/gate-families/; stopped, it goes on where it was. `--stage publish` writes the runs made so far
to results/gate_runs.json, and a clone goes on from there. To run in the background:

    nohup nice python benchmarks/gate.py --data DIR > runs/gate.log 2>&1 &
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoodata
from gate_model import features, fitted, forecast, helped
from gate_runs import SETTLING, UNSEEN, Run, measured, publish, restore
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

from sane_plugins.initialize import BenefitForecast

SHARE = 0.85
COMPARED = {
    ("ahead",): "who is ahead in the race",
    ("before", "after"): "margins of the race before and after training",
    ("after",): "margin of the race after training (ships where there is no time for folds)",
    ("paired",): "paired margin of the race",
    (
        "ranking",
        "after",
    ): "lead before training, and margin of the race",
    ("ranking", "paired"): "lead before training, and paired margin of the race",
}
FOLDED = {
    **COMPARED,
    ("ahead", "folds"): "who is ahead, and the paired margin of the folds",
    ("folds",): "paired margin of the folds (ships)",
}
OTHERS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "who is ahead": {"race": ("ahead",), "folds": ("ahead", "folds")},
    "both margins of the race": {"race": ("before", "after"), "folds": ("before", "after")},
    "lead before training alone": {"race": ("ranking",), "folds": ("ranking",)},
    "lead, and margin after training": {"race": ("ranking", "after"), "folds": ("folds",)},
    "lead, and paired margin": {"race": ("ranking", "paired"), "folds": ("ranking", "folds")},
}
"""What else could be read, fitted on the same runs."""
SHIPPED = Path(__file__).parents[1] / "sane_plugins" / "data" / "gate.json"


def main() -> None:
    """Run what is missing; compare features, or test what ships."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--zoos", type=Path, default=zoodata.RUNS / "zoos")
    parser.add_argument("--stage", choices=["choose", "test", "publish"], action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stages = arguments.stage or ["choose", "publish", "test"]
    restore()
    if "choose" in stages:
        _choose(measured(SETTLING, arguments.data, arguments.zoos))
    if "publish" in stages:
        print(f"{publish()} runs of {len(SETTLING) + len(UNSEEN)}")
    if "test" in stages:
        settling = measured(SETTLING, arguments.data, arguments.zoos)
        _test(measured(UNSEEN, arguments.data, arguments.zoos), settling)


def _choose(cases: list[Run]) -> None:
    """Tell how features do on settling runs, a data set left out in turn: without folds, and with them."""
    told = [case for case in cases if case["family"] and not case["dropped"]]
    lines = [
        "| features | cases | right, a data set left out in turn | speaks | right then | Brier score |",
        "|---|---|---|---|---|---|",
    ]
    for some, names in (
        ([case for case in told if not case["counts"]], COMPARED),
        ([case for case in told if case["counts"]], FOLDED),
    ):
        y = helped(some)
        for name, label in names.items():
            p = cross_val_predict(
                LogisticRegression(),
                features(some, name),
                y,
                groups=[case["dataset"] for case in some],
                cv=LeaveOneGroupOut(),
                method="predict_proba",
            )[:, 1]
            speaks = np.array([not BenefitForecast(float(x)).is_close for x in p])
            lines.append(
                f"| {label} | {len(some)} | {_right(p, y):.3f} | {speaks.mean():.3f}"
                f" | {_right(p[speaks], y[speaks]):.3f} | {_brier(p, y):.3f} |"
            )
    (zoodata.RUNS / "gate-choice.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _right(chance: Any, truth: Any) -> float:
    return float(((chance >= 0.5) == truth).mean())


def _brier(chance: Any, truth: Any) -> float:
    return float(((chance - truth) ** 2).mean())


def _test(cases: list[Run], settling: list[Run]) -> None:
    """Tell how often what ships is right on unseen runs, and how often others would be."""
    gate = json.loads(SHIPPED.read_text())
    told = [case for case in cases if case["family"]]
    forecasts = [forecast(case, gate) for case in told]
    truth, said = helped(told), np.array([x.helps for x in forecasts])
    speaks = np.array([not x.is_close for x in forecasts])
    runs = {case["run"]: case["real"] for case in cases}
    speaking = {case["run"] for case, x in zip(told, speaks, strict=True) if x}
    right = float((said == truth)[speaks].mean())
    share = len(speaking) / len(runs)
    real, families = (
        np.array([case["real"] for case in told]),
        np.array([x["family"] for x in told]),
    )
    agreed = np.array([_is_agreed(case) for case in told])
    lines = [
        f"| {len(runs)} runs, {sum(runs.values())} on real architectures; {len(told)} forecasts | |",
        "|---|---|",
        f"| runs in which it speaks | {share:.3f} |",
        f"| right where it speaks ({speaks.sum()} forecasts) | {right:.3f} |",
        *(
            f"| right where it speaks of {label} ({(speaks & some).sum()}; they helped in"
            f" {truth[some].mean() if some.any() else 0:.3f}) | {_mean((said == truth)[speaks & some])} |"
            for label, some in (
                ("generated weights", families == "sane"),
                ("transferred weights", families == "transfer"),
                ("real architectures", real),
                ("small networks", ~real),
            )
        ),
        f"| right where it speaks and all orders of images agree ({(speaks & agreed).sum()})"
        f" | {_mean((said == truth)[speaks & agreed])} |",
        f"| right where it has to answer | {(said == truth).mean():.3f} |",
        f"| always saying the commoner answer | {max(truth.mean(), 1 - truth.mean()):.3f} |",
        f"| saying who is ahead in the race | {_mean(np.array([x['ahead'] for x in told]) == truth)} |",
        f"| Brier score | {_brier(np.array([x.probability for x in forecasts]), truth):.3f} |",
        "",
        f"- {'met' if right >= SHARE and len(runs) >= 60 else 'MISSED'}: it is right in {SHARE:.0%} of at least 60"
        " unseen runs where it speaks",
        f"- {'met' if share >= SHARE else 'MISSED'}: it speaks in {SHARE:.0%}",
        "",
        "| other margins, fitted on the same runs | forecasts that speak | right then | Brier score |",
        "|---|---|---|---|",
        *(_of_others(told, truth, settling, label) for label in OTHERS),
        "",
    ]
    chosen = zoodata.RUNS / "gate-choice.md"
    text = (chosen.read_text() + "\n" if chosen.exists() else "") + "\n".join(lines)
    (zoodata.RESULTS / "gate.md").write_text(text)
    (zoodata.RESULTS / "gate.json").write_text(json.dumps({"gate": gate, "test": cases}) + "\n")
    print(text)
    sys.exit(right < SHARE or share < SHARE)


def _mean(values: Any) -> str:
    return f"{values.mean():.3f}" if len(values) else "none"


def _of_others(told: list[Run], truth: Any, settling: list[Run], label: str) -> str:
    gate = fitted(settling, OTHERS[label])
    found = [forecast(case, gate, OTHERS[label]) for case in told]
    p, speaks = np.array([x.probability for x in found]), np.array([not x.is_close for x in found])
    right = _right(p[speaks], truth[speaks])
    return f"| {label} | {speaks.mean():.3f} | {right:.3f} | {_brier(p, truth):.3f} |"


def _is_agreed(case: Run) -> bool:
    """Return whether the difference has one sign in all orders of images."""
    ours, plain = (np.array(curves).mean(1) for curves in case["curves"])
    return len({*np.sign(ours - plain)}) == 1


if __name__ == "__main__":
    main()
