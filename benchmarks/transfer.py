"""Do heads rank networks of a zoo that they were not fitted on: another dataset, another architecture?

    python benchmarks/transfer.py --data ../shared/data [--zoos runs/zoos] [--sane FILE]

For every ordered pair of zoos, a head is fitted on 80 % of the networks of the first, another draw per seed,
and ranks the evaluation pool of the second (networks that the shipped SANE has not seen), with the
checkpoints of all epochs and with those of the last. Two ways, neither of which sees a label of the second
zoo: features as they are (accuracy only), and each feature as its normal score within its own zoo, which
needs a pile of networks to rank but cancels what the zoos differ in. R^2 is told for information: another zoo's accuracy
lies elsewhere, so a useful ranking can have a negative one. Writes transfer.json and transfer.md in
benchmarks/results/. Exit code 1: no pair of datasets or none of architectures ranks accuracy above 0.5.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoodata
from zoodata import MEMORY, PROPERTIES, RESULTS, RIVAL, RUNS, scores

from sane_plugins.autoencoder import fingerprint
from sane_plugins.properties import FeatureDataset, regressors
from sane_plugins.properties.dataset import stack_features
from sane_plugins.properties.fitting.cross_validation import fit_members
from sane_plugins.properties.regressors import Array, normal_scores, predict
from sane_plugins.zoo import Zoo, evaluation_pool

SEEDS = 3
FITTED = 0.8
ABOVE = 0.5
OWN = ("sane", "statistics", "both")
WAYS = ("as they are", "within the zoo")
SCOPES = ("all epochs", "last epoch")
REGRESSOR = "boosting+forest"
KNOTS = 33
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Field:
    """A zoo, its features in both ways, and where its evaluation pool and its last epochs are (N,)."""

    zoo: Zoo
    ways: Mapping[str, FeatureDataset]
    pool: Array
    last: Array

    @property
    def networks(self) -> Array:
        """Return the network of each row (N,)."""
        return np.asarray([entry.network for entry in self.zoo.entries])


def main() -> None:
    """Measure every pair, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument(
        "--zoos", type=Path, default=RUNS / "zoos", help="folder of zoos trained here"
    )
    parser.add_argument("--only", action="append", help="a zoo's name; all by default")
    parser.add_argument("--property", action="append", choices=PROPERTIES, help="all by default")
    parser.add_argument("--sane", type=Path, help="a SANE file; the embedded one by default")
    parser.add_argument("--out", type=Path, default=RESULTS / "transfer.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start, (model, note) = time.perf_counter(), zoodata.sane(arguments.sane)
    found = zoodata.zoos(arguments.data, arguments.zoos, arguments.only)
    fields = [_field(zoo, zoodata.features(zoo, model)) for zoo in found]
    names = arguments.property or list(PROPERTIES)
    rows = [row for name in names for field in fields for row in _from(field, name, fields)]
    told: dict[str, Any] = {
        "sane": fingerprint(model),
        "note": note,
        "seeds": SEEDS,
        "seconds": round(time.perf_counter() - start),
        "criteria": criteria(rows),
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(told, indent=1) + "\n")
    page = _page(told)
    arguments.out.with_suffix(".md").write_text(page)
    print(page)
    sys.exit(0 if all(one["ok"] for one in told["criteria"].values()) else 1)


def criteria(rows: Rows) -> dict[str, Any]:
    """Return whether our features rank accuracy above 0.5 for a pair of datasets, and of architectures."""
    found = {}
    for change in ("dataset", "architecture"):
        own = [
            row
            for row in rows
            if row["change"] == change
            and row["property"] == "test_accuracy"
            and row["features"] in OWN
        ]
        if not own:
            continue
        best = {scope: max((r for r in own if r["scope"] == scope), key=_tau) for scope in SCOPES}
        found[f"another {change}: Kendall tau above {ABOVE} for a pair"] = {
            "ok": _tau(best[SCOPES[0]]) > ABOVE,
            "found": [
                f"{scope}: {_tau(row):.3f} {row['from']} to {row['to']}, {row['features']} {row['way']}"
                for scope, row in best.items()
            ],
        }
    return found


def table(rows: Rows, name: str, scope: str) -> str:
    """Return Kendall's tau of a property as a markdown table: pairs in rows, features in columns."""
    chosen = [row for row in rows if row["property"] == name and row["scope"] == scope]
    columns = list(dict.fromkeys((row["features"], row["way"]) for row in chosen))
    lines = [
        "| from | to | another | " + " | ".join(f"{f}, {way}" for f, way in columns) + " |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for pair in dict.fromkeys((row["from"], row["to"], row["change"]) for row in chosen):
        cells = {
            (row["features"], row["way"]): f"{row['tau']:.3f} ± {row['tau_spread']:.3f}"
            for row in chosen
            if (row["from"], row["to"], row["change"]) == pair
        }
        lines.append("| " + " | ".join([*pair, *(cells[column] for column in columns)]) + " |")
    return "\n".join(lines)


def _tau(row: Mapping[str, Any]) -> float:
    return float(row["tau"])


def _page(told: Mapping[str, Any]) -> str:
    lines = [f"{told['note']}; {told['seconds']} s. Kendall's τ, mean ± deviation of {SEEDS} fits."]
    for name, one in told["criteria"].items():
        lines.append(f"- {'met' if one['ok'] else 'MISSED'}: {name} ({'; '.join(one['found'])})")
    for name in PROPERTIES:
        for scope in SCOPES:
            if any(row["property"] == name and row["scope"] == scope for row in told["rows"]):
                lines += ["", f"## {name}, {scope}", "", table(told["rows"], name, scope)]
    return "\n".join(lines) + "\n"


def _field(zoo: Zoo, samples: FeatureDataset) -> Field:
    networks, pool = np.asarray(samples.networks), evaluation_pool(zoo)
    epochs = zoodata.targets(zoo, "epoch")
    final = {name: epochs[networks == name].max() for name in zoo.networks}
    ranked = {name: _scored(x) for name, x in samples.features.items() if name != "W"}
    ways = (samples, FeatureDataset(features=ranked, networks=samples.networks))
    return Field(
        zoo,
        dict(zip(WAYS, ways, strict=True)),
        np.isin(networks, sorted(pool)),
        np.array([final[name] for name in networks]) == epochs,
    )


def _scored(x: Array) -> Array:
    """Return each feature's normal score among the zoo's own networks; labels are not used."""
    return normal_scores(x, np.quantile(x, np.linspace(0, 1, KNOTS), axis=0))


def _from(source: Field, name: str, fields: list[Field]) -> Iterator[dict[str, Any]]:
    truth = zoodata.targets(source.zoo, name)
    for features in (RIVAL, *OWN):
        for way in WAYS if name == PROPERTIES[0] else WAYS[1:]:
            runs = [_fit(source, features, way, truth, seed) for seed in range(SEEDS)]
            for other in fields:
                if other is not source:
                    yield from _ranked(source, other, name, features, way, runs)
    clock = time.strftime("%X")
    print(clock, f"{source.zoo.name}: heads for {name} done", file=sys.stderr, flush=True)


def _fit(source: Field, features: str, way: str, truth: Array, seed: int) -> Any:
    """Fit on another draw of 80 % of the networks for each seed; return what predicts."""
    names = np.array(sorted(set(source.networks)))
    drawn = np.random.default_rng(seed).permutation(names)[: round(FITTED * len(names))]
    keep = np.isin(source.networks, drawn)
    x = _read(source.ways[way], features)[keep]
    if features == RIVAL:
        return MEMORY.cache(zoodata.boosting)(x, truth[keep]).predict
    code = zoodata.code("regressors", beside=regressors.__file__)
    members = MEMORY.cache(_members)(x, truth[keep], code)
    return lambda rows: predict(members, rows)


def _members(x: Array, y: Array, _code: str) -> Any:
    return fit_members(REGRESSOR, x, y)


def _read(samples: FeatureDataset, features: str) -> Array:
    return (
        samples.features["s(W)"]
        if features == RIVAL
        else stack_features(samples.features, features)
    )


def _ranked(
    source: Field, other: Field, name: str, features: str, way: str, runs: list[Any]
) -> Iterator[dict[str, Any]]:
    truth, x = zoodata.targets(other.zoo, name), _read(other.ways[way], features)
    for scope, rows in zip(SCOPES, (other.pool, other.pool & other.last), strict=True):
        if len(set(truth[rows])) < 2:  # the epoch of the last epoch is always the same
            continue
        each = [scores(truth[rows], run(x[rows])) for run in runs]
        tau, r2 = ([one[key] for one in each] for key in ("tau", "r2"))
        yield {
            "from": source.zoo.name,
            "to": other.zoo.name,
            "change": _change(source.zoo, other.zoo),
            "property": name,
            "scope": scope,
            "features": features,
            "way": way,
            "tau": float(np.mean(tau)),
            "tau_spread": float(np.std(tau)),
            "tau_each": tau,
            "r2": float(np.mean(r2)),
            "networks": int(rows.sum()),
        }


def _change(first: Zoo, second: Zoo) -> str:
    """Return what differs: the dataset, the architecture, or both."""
    datasets, kinds = ([z.name.split("-")[i] for z in (first, second)] for i in (0, 1))
    if datasets[0] == datasets[1]:
        return "architecture"
    return "dataset" if kinds[0] == kinds[1] else "dataset and architecture"


if __name__ == "__main__":
    main()
