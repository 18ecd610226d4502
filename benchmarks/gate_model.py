"""What a forecast reads of a run's case, how it is fitted, and what it says: shared by `gate.py` and `fit_gate.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gate_runs import Run
from sklearn.linear_model import LogisticRegression

from sane_plugins.initialize import BenefitForecast
from sane_plugins.initialize.outcome.benefit import mcnemar_margin

SHIPPING: Mapping[str, Sequence[str]] = {"race": ("after",), "folds": ("folds",)}
"""The margin that the forecast reads, without folds and with them."""


def features(cases: Sequence[Run], names: Sequence[str]) -> Any:
    """Return margins of every case by name, (cases x names), float64, in standard errors, -10 to 10."""
    read: dict[str, Callable[[Run], float]] = {
        "ahead": lambda case: 1.0 if case["ahead"] else -1.0,
        "before": lambda case: case["margins"][0],
        "after": lambda case: case["margins"][1],
        "paired": lambda case: mcnemar_margin([case["discordant"]]),
        "ranking": lambda case: max(-10.0, min(10.0, case["ranking"])),
        "folds": lambda case: mcnemar_margin(case["counts"]),
    }
    return np.array([[read[name](case) for name in names] for case in cases], dtype=float)


def fitted(cases: Sequence[Run], margins: Mapping[str, Sequence[str]] = SHIPPING) -> Run:
    """Return a logistic regression's weights for cases without folds ("race"), and for those with them."""
    told = [case for case in cases if case["family"] and not case["dropped"]]
    tasks = list(dict.fromkeys(case["dataset"] for case in told))
    gate: Run = {"runs": len(told), "helped": int(helped(told).sum()), "tasks": tasks}
    for name, read in margins.items():
        used = [case for case in told if bool(case["counts"]) is (name == "folds")]
        model = LogisticRegression().fit(features(used, read), helped(used))
        weights, bias = model.coef_[0].round(6).tolist(), round(float(model.intercept_[0]), 6)
        gate[name] = {"weights": weights, "bias": bias}
    return gate


def forecast(
    case: Run, gate: Run, margins: Mapping[str, Sequence[str]] = SHIPPING
) -> BenefitForecast:
    """Return what such weights say of a case: no where it is said that no transfer led."""
    if case["dropped"]:
        return BenefitForecast(0.0)
    name = "folds" if case["counts"] else "race"
    read = features([case], margins[name])[0]
    score = read @ np.array(gate[name]["weights"]) + gate[name]["bias"]
    return BenefitForecast(float(1 / (1 + np.exp(-score))))


def helped(cases: Sequence[Run]) -> Any:
    """Return whether a family beat the best default on test images, (cases,), bool."""
    return np.array([case["gain"] > 0 for case in cases])
