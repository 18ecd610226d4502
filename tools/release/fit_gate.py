"""Fit the gate that ships in the wheel: a logistic regression on runs of settling tasks, written to
`sane_plugins/data/gate.json`.

    python tools/release/fit_gate.py --data ../shared/data [--zoos runs/zoos]

Runs that are missing in runs/gate-families/ are made first, which takes hours; it may be stopped and goes on later. `benchmarks/gate.py` chose the features and measures
what is fitted here, on runs of other tasks.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # runs are those of the figures
import zoodata
from gate_runs import SETTLING, features, helped, measured, restore

SHIPPED = Path(__file__).parents[2] / "sane_plugins" / "data" / "gate.json"


def main() -> None:
    """Run what is missing, fit, and write the shipped file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--zoos", type=Path, default=zoodata.RUNS / "zoos")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    restore()
    gate = fitted(measured(SETTLING, arguments.data, arguments.zoos))
    SHIPPED.write_text(json.dumps(gate, indent=1) + "\n")
    print(f"fitted on {gate['runs']} runs, {gate['helped']} of which were helped: {gate}")


def fitted(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the weights for margins of the race alone, and for the folds where there was time for them."""
    told = [case for case in cases if case["family"] and not case["dropped"]]
    tasks = list(dict.fromkeys(case["dataset"] for case in told))
    gate: dict[str, Any] = {"runs": len(told), "helped": int(helped(told).sum()), "tasks": tasks}
    for name in ("race", "folds"):
        used = told if name == "race" else [case for case in told if case["counts"]]
        model = LogisticRegression().fit(features(used, name), helped(used))
        weights, bias = model.coef_[0].round(6).tolist(), round(float(model.intercept_[0]), 6)
        gate[name] = {"weights": weights, "bias": bias}
    return gate


if __name__ == "__main__":
    main()
