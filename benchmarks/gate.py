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
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoodata
from gate_runs import SETTLING, UNSEEN, features, helped, measured, publish, restore
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

from sane_plugins.initialize import BenefitForecast

SHARE = 0.85
COMPARED = {
    "ahead": "who is ahead in the race",
    "race": "margins of the race (ships where there is no time for folds)",
    "paired": "paired margin of the race",
    "evidence": "lead before training, and paired margin of the race",
}
FOLDED = {**COMPARED, "folds": "who is ahead, and the paired margin of the folds (ships)"}
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
        _test(measured(UNSEEN, arguments.data, arguments.zoos))


def _choose(cases: list[dict[str, Any]]) -> None:
    """Tell how features do on settling runs, a data set left out in turn."""
    told = [case for case in cases if case["family"] and not case["dropped"]]
    folded = [case for case in told if case["counts"]]
    lines = [
        "| features | cases | right, a data set left out in turn | Brier score |",
        "|---|---|---|---|",
    ]
    for some, names in ((told, COMPARED), (folded, FOLDED)):
        y = helped(some)
        for name, label in names.items():
            groups = [case["dataset"] for case in some]
            p = cross_val_predict(
                LogisticRegression(),
                features(some, name),
                y,
                groups=groups,
                cv=LeaveOneGroupOut(),
                method="predict_proba",
            )[:, 1]
            lines.append(f"| {label} | {len(some)} | {_right(p, y):.3f} | {_brier(p, y):.3f} |")
    (zoodata.RUNS / "gate-choice.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _right(chance: Any, truth: Any) -> float:
    return float(((chance >= 0.5) == truth).mean())


def _brier(chance: Any, truth: Any) -> float:
    return float(((chance - truth) ** 2).mean())


def _test(cases: list[dict[str, Any]]) -> None:
    gate = json.loads(SHIPPED.read_text())
    told = [case for case in cases if case["family"]]
    forecasts = [_forecast(case, gate) for case in told]
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
        f"| right where it has to answer | {(said == truth).mean():.3f} |",
        f"| always saying the commoner answer | {max(truth.mean(), 1 - truth.mean()):.3f} |",
        f"| saying who is ahead in the race | {_mean(np.array([x['ahead'] for x in told]) == truth)} |",
        f"| Brier score | {_brier(np.array([x.probability for x in forecasts]), truth):.3f} |",
        "",
        f"- {'met' if right >= SHARE and len(runs) >= 60 else 'MISSED'}: it is right in {SHARE:.0%} of at least 60"
        " unseen runs where it speaks",
        f"- {'met' if share >= SHARE else 'MISSED'}: it speaks in {SHARE:.0%}",
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


def _forecast(case: dict[str, Any], gate: dict[str, Any]) -> BenefitForecast:
    if case["dropped"]:
        return BenefitForecast(0.0)  # it is said that no transfer led, and none is trained
    name = "folds" if case["counts"] else "race"
    score = features([case], name)[0] @ np.array(gate[name]["weights"]) + gate[name]["bias"]
    return BenefitForecast(float(1 / (1 + np.exp(-score))))


if __name__ == "__main__":
    main()
