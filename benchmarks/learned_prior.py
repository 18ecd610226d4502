"""Three jobs of a SANE on networks of real forms: filling, draws and refinement, each against both plain baselines.

    python benchmarks/learned_prior.py --data ../shared/data [--sane FILE] [--only TASK/NETWORK]

A photo network of the wheel is moved into another architecture (1,000 or 100 images of 64 pixels of a task that it
has not seen; the SANE has read photo networks, and small CNNs of animal silhouettes), and the job is done on what comes of it:

- filling: what a graft leaves open is decoded from hidden tokens. Baselines: the graft alone (open tensors as they
  are drawn by default), and open tensors drawn from a normal distribution of the decoded scale. Also tried: open tensors as
  they come back when nothing is hidden from the encoder.
- draws: the better of two draws around a regression transfer, in latents or as Gaussian noise on the weights at the
  same distance, tensor by tensor; by the left-out loss of the fitted classifier. Of a
  draw the difference that it makes to what is decoded is added.
- refinement: 20 Adam steps on latents through the frozen decoder, against the same steps on the weights, on weights
  relative to the deviation of their tensor (which is what latents are of, too), and noise at the same distance. With
  1,000 images steps see four fifths of them; of two rates, and no step at all, that is taken whose classifier is right
  in most of the last fifth. A fifth of 100 images is too few for that: steps see all, at the rate that was best
  on Fashion-MNIST and CIFAR-10 (`--settle` tries three for each kind of steps).

Each time statistics are measured anew and the classifier is fitted in closed form; test accuracy is told before
training and after an epoch of 1,000 images, or as many steps with 100. Novelty is the relative distance from the transfer, and the share of its wrong answers
that are repeated. Runs lie in runs/learned_prior and are not repeated; `--report` writes learned_prior.json and .md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoodata
from feature_regression import read_task
from learned_prior_runs import Cell
from learned_prior_setting import FEW, IMAGES, NETWORKS, SEEDS, SETTLING, SIZE, TASKS
from zoodata import RESULTS, RUNS

from sane_plugins.autoencoder import SANE, fingerprint

WORK = RUNS / "learned_prior"
VERSION = 3  # of what a cell runs
SETTLING_TESTS = 1000  # images
HINTED = "animals"  # on which refinement with few images was first tried
JOBS = {
    "filling": ("filled", ("graft", "open tensors Gaussian")),
    "filling, decoded without hiding": ("open tensors decoded", ("graft",)),
    "filling, scales alone": ("open tensors Gaussian", ("graft",)),
    "draws, σ 0.1": ("draw 0.1", ("transfer", "noise as draw 0.1")),
    "draws, σ 0.03": ("draw 0.03", ("transfer", "noise as draw 0.03")),
    "refinement": (
        "refined",
        (
            "transfer",
            "noise as refined",
            "same steps on weights",
            "same steps on relative weights",
        ),
    ),
}


def main() -> None:
    """Run what is missing, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sane", type=Path, help="a SANE file; the embedded one by default")
    parser.add_argument("--only", default="", help="TASK/NETWORK, or its beginning")
    parser.add_argument("--images", type=int, action="append", help=f"{IMAGES} by default")
    parser.add_argument("--seed", type=int, action="append", help="all three by default")
    parser.add_argument("--settle", action="store_true", help="try rates for few images")
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = zoodata.sane(arguments.sane)
    folder = WORK / f"{fingerprint(model)[:12]}-{VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.settle:
        _settle(model, arguments.data, folder.with_name(f"{folder.name}-settling"))
        return
    seeds = [] if arguments.report else arguments.seed or range(SEEDS)
    for seed, images in product(seeds, arguments.images or IMAGES):
        for task in TASKS:
            for network in NETWORKS:
                name = f"{task}-{network.replace(' ', '_')}-{images}-{seed}"
                path = folder / f"{name}.json"
                if f"{task}/{network}".startswith(arguments.only) and not path.exists():
                    started = time.monotonic()
                    given = read_task(arguments.data, TASKS[task], images, seed, SIZE)
                    runs = dict(Cell(model, network, given, seed).runs())
                    told = {"task": task, "network": network, "images": images, "seed": seed}
                    path.write_text(json.dumps({**told, "runs": runs}))
                    shown = {k: f"{r['before']:.2f}/{r['after']:.2f}" for k, r in runs.items()}
                    print(
                        path.stem,
                        f"{time.monotonic() - started:.0f} s",
                        shown,
                        file=sys.stderr,
                        flush=True,
                    )
    _report(folder, fingerprint(model))


def _settle(model: SANE, data: Path, folder: Path) -> None:
    """Try rates on the settling tasks, and print what each adds to the transfer."""
    folder.mkdir(exist_ok=True)
    for task, network in product(SETTLING, NETWORKS):
        path = folder / f"{task}-{network.replace(' ', '_')}.json"
        if not path.exists():
            given = read_task(data, task, min(IMAGES), 0, SIZE)
            x_test, y_test = given.x_test[:SETTLING_TESTS], given.y_test[:SETTLING_TESTS]
            given = replace(given, x_test=x_test, y_test=y_test)
            path.write_text(json.dumps(dict(Cell(model, network, given, 0).rates_tried())))
            print(path.stem, file=sys.stderr, flush=True)
    cells = [{"runs": json.loads(path.read_text())} for path in sorted(folder.glob("*.json"))]
    for name in cells[0]["runs"]:
        gains = [_gain(cells, name, "transfer", when) for when in ("before", "after")]
        print(f"{name:42} {gains[0]:14} {gains[1]}")


def _report(folder: Path, sane: str) -> None:
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    result = {"sane": sane, "cells": cells}
    path = RESULTS / "learned_prior.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    page = tables(result)
    path.with_suffix(".md").write_text(page + "\n")
    print(page)


def tables(result: Mapping[str, Any]) -> str:
    """Return what each job adds to each baseline, and every cell, as markdown tables, for each number of images."""
    lines = []
    for images in sorted({cell["images"] for cell in result["cells"]}, reverse=True):
        cells = [cell for cell in result["cells"] if cell["images"] == images]
        lines += [f"**{images:,} images**", "", *_tables_of(cells), ""]
        if images < FEW and any(cell["task"] != HINTED for cell in cells):
            lines += [_without_hinted(cells), ""]
    return "\n".join(lines).rstrip()


def _without_hinted(cells: list[Any]) -> str:
    """Return what refinement adds on tasks that did not suggest it."""
    others = [cell for cell in cells if cell["task"] != HINTED]
    told = [
        f"{baseline} {_gain(others, 'refined', baseline, 'before')} before training and"
        f" {_gain(others, 'refined', baseline, 'after')} after"
        for baseline in JOBS["refinement"][1]
    ]
    return (
        f"That few images suit refinement was first seen in a cell of {HINTED}. On the other tasks ({len(others)} cells)"
        f" it adds to {'; to '.join(told)}."
    )


def _tables_of(cells: list[Any]) -> Iterator[str]:
    yield from [
        f"{len(cells)} cells of task, network and seed. Points of test accuracy that a job adds to a baseline: mean ± standard error over cells.",
        "",
        "| job | against | before training | after | distance | wrong answers repeated |",
        "|---|---|---|---|---|---|",
    ]
    told = cells[0]["runs"]
    for job, (own, baselines) in ((j, x) for j, x in JOBS.items() if x[0] in told):
        for baseline in baselines:
            gains = [_gain(cells, own, baseline, when) for when in ("before", "after")]
            novelty = [
                np.mean([cell["runs"][own][key] for cell in cells])
                for key in ("distance", "wrong_repeated")
            ]
            yield (
                f"| {job} | {baseline} | {gains[0]} | {gains[1]} | {novelty[0]:.2f} | {novelty[1]:.2f} |"
            )
    names = list(told)
    yield from [
        "",
        "Test accuracy before training / after an epoch, means over seeds.",
        "",
        "| task, network | seeds | " + " | ".join(names) + " |",
        "|---" * (len(names) + 2) + "|",
    ]
    by_pair: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for cell in cells:
        by_pair[cell["task"], cell["network"]].append(cell["runs"])
    for (task, network), runs in by_pair.items():
        texts = [
            "/".join(
                f"{np.mean([run[name][when] for run in runs]):.2f}" for when in ("before", "after")
            )
            for name in names
        ]
        yield f"| {task}, {network} | {len(runs)} | " + " | ".join(texts) + " |"


def _gain(cells: list[Any], own: str, baseline: str, when: str) -> str:
    gains = np.array([cell["runs"][own][when] - cell["runs"][baseline][when] for cell in cells])
    error = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
    return f"{100 * gains.mean():+.1f} ± {100 * error:.1f}"


if __name__ == "__main__":
    main()
