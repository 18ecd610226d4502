"""Which of several networks lends best to another architecture and task: can their weights alone tell?

    python benchmarks/prompt_ranking.py --data ../shared/data [--zoo runs/real_forms/real-forms] [--sane FILE] [--report]

Prompts are the networks of the zoo of real forms that neither the SANE nor any head has seen, early and last
checkpoints, a dozen drawn for each cell of task, architecture and seed. Each is moved into the architecture (regression,
500 images of 32 pixels), the classifier is fitted in closed form, and what it is worth is its accuracy on test images. Before, heads that
were fitted to the accuracy of all other networks of the zoo (`real_features.py`) rank the prompts; so does the accuracy that each prompt
has on its own task, which a card would tell, standardised within that task. Told are Kendall's tau, and the points of
accuracy that are lost where the first of each ranking is taken instead of the best prompt. Runs lie in runs/prompt_ranking;
`--report` writes prompt_ranking.json and .md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoodata
from feature_regression import BATCH, read_task
from learned_prior_setting import NETWORKS, SEEDS, TASKS
from real_features import SETS, UNSEEN, features_of, fit_predict, within_tasks
from scipy.stats import kendalltau
from zoodata import RESULTS, RUNS

from sane_plugins.autoencoder import fingerprint
from sane_plugins.grafting import (
    PromptInfo,
    condition,
    find_classifier,
    fit_classifier,
    transfer_methods,
)
from sane_plugins.prompts import network_of_module
from sane_plugins.runtime import seeded
from sane_plugins.tasks import Task, accuracy
from sane_plugins.zoo import Entry, Zoo, evaluation_pool

IMAGES, SIZE, PROMPTS = 500, 32, 12
EARLY = (1, 4)
CARD = "accuracy on its own task"
WORK = RUNS / "prompt_ranking"
Array = np.ndarray[Any, Any]


def main() -> None:
    """Run what is missing, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--zoo", type=Path, default=RUNS / "real_forms" / "real-forms")
    parser.add_argument("--sane", type=Path, help="a SANE file; the embedded one by default")
    parser.add_argument("--report", action="store_true", help="of what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    zoo = Zoo.open(arguments.zoo)
    zoo = zoo.where(lambda entry: bool(entry.properties["finite"]))
    for seed in [] if arguments.report else range(SEEDS):
        for task in TASKS:
            for network in NETWORKS:
                path = WORK / f"{task}-{network.replace(' ', '_')}-{seed}.json"
                if not path.exists():
                    started = time.monotonic()
                    given = read_task(arguments.data, TASKS[task], IMAGES, seed, SIZE)
                    worth = _worth(zoo, network, given, seed)
                    told = {"task": task, "network": network, "seed": seed, "worth": worth}
                    path.write_text(json.dumps(told))
                    span = f"{min(worth.values()):.2f} to {max(worth.values()):.2f}"
                    print(
                        f"{path.stem} {time.monotonic() - started:.0f} s: {span}",
                        file=sys.stderr,
                        flush=True,
                    )
    model, _ = zoodata.sane(arguments.sane)
    cells = [json.loads(path.read_text()) for path in sorted(WORK.glob("*.json"))]
    scores = _scores(zoo, features_of(zoo, model))
    result = {"sane": fingerprint(model), "cells": cells, "scores": scores}
    (RESULTS / "prompt_ranking.json").write_text(json.dumps(result) + "\n")
    (RESULTS / "prompt_ranking.md").write_text(tables(result) + "\n")
    print(tables(result))


def _worth(zoo: Zoo, network: str, task: Task, seed: int) -> dict[str, float]:
    """Return the test accuracy that each of a dozen prompts brings, by their keys."""
    entries = _prompts(zoo)
    drawn = torch.randperm(len(entries), generator=torch.Generator().manual_seed(seed))[:PROMPTS]
    found = {}
    for entry in (entries[i] for i in drawn.tolist()):
        with seeded(torch.Generator().manual_seed(seed)):
            module = NETWORKS[network][1](len(task.classes))
        prompt = network_of_module(zoo.module(entry).float(), PromptInfo(name=entry.key))
        rng = torch.Generator().manual_seed(seed)
        transfer_methods()["regression-protected"](module, prompt, task, rng)
        condition(module, task.x_train, 16, BATCH, rng)
        layer = find_classifier(module, task.x_train[:2])
        assert layer is not None
        fit_classifier(module, layer, task.x_train, task.y_train)
        found[entry.key] = accuracy(module, task.x_test, task.y_test)
    return found


def _prompts(zoo: Zoo) -> list[Entry]:
    """Return the last checkpoint and early ones of the networks that nothing was fitted on."""
    unseen = evaluation_pool(zoo, UNSEEN)
    last = {entry.network: entry for entry in zoo.entries}
    return [
        entry
        for entry in zoo.entries
        if entry.network in unseen
        and (entry is last[entry.network] or entry.properties["epoch"] in EARLY)
    ]


def _scores(zoo: Zoo, features: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    """Return the score that each ranking gives to each prompt, by the names of rankings and keys of prompts."""
    networks = np.array([entry.network for entry in zoo.entries])
    tasks = np.array([str(entry.properties["dataset"]) for entry in zoo.entries])
    target = within_tasks(zoodata.targets(zoo, "test_accuracy"), tasks)
    held = np.isin(networks, sorted(evaluation_pool(zoo, UNSEEN)))
    keys = [entry.key for entry, out in zip(zoo.entries, held, strict=True) if out]
    told = {CARD: dict(zip(keys, target[held].tolist(), strict=True))}
    for name, kinds in SETS.items():
        x = np.concatenate([features[kind] for kind in kinds], 1)
        _, predicted = fit_predict(x[~held], networks[~held], target[~held], x[held])
        told[name] = dict(zip(keys, map(float, predicted), strict=True))
    return told


def tables(result: Mapping[str, Any]) -> str:
    """Return how well each ranking orders prompts, over all cells and by task and architecture, as markdown."""
    cells = result["cells"]
    scores = result["scores"]
    losses = {name: [_loss(cell, x) for cell in cells] for name, x in scores.items()}
    losses["any prompt"] = [_loss_of_any(cell) for cell in cells]
    groups = [(key, value) for key in ("task", "network") for value in _values(cells, key)]
    lines = [
        f"{len(cells)} cells of task, architecture and seed, {PROMPTS} prompts each. Kendall's tau: mean over cells; lost points of accuracy: mean ± standard error over cells.",
        "Errors of tau, and of the lead over the accuracy on a prompt's own task, come from leaving out each prompt network in turn (jackknife).",
        "",
        "| ranked by | tau | more than its own task's accuracy | points lost by taking the first | "
        + " | ".join(f"tau: {value}" for _, value in groups)
        + " |",
        "|---" * (len(groups) + 4) + "|",
    ]
    for name, lost in losses.items():
        row = ["", "", _mean([100 * x for x in lost]), *[""] * len(groups)]
        if name in scores:
            row[0] = "{:.2f} ± {:.2f}".format(*_jackknifed(cells, scores[name]))
            if name != CARD:
                row[1] = "{:+.2f} ± {:.2f}".format(*_jackknifed(cells, scores[name], scores[CARD]))
            for place, (key, value) in enumerate(groups, 3):
                alike = [cell for cell in cells if cell[key] == value]
                row[place] = f"{_mean_tau(alike, scores[name]):.2f}"
        lines.append(f"| {name} | {' | '.join(row)} |")
    return "\n".join(lines)


def _values(cells: list[Any], key: str) -> list[str]:
    return list(dict.fromkeys(cell[key] for cell in cells))


def _jackknifed(
    cells: list[Any], scores: Mapping[str, float], others: Mapping[str, float] | None = None
) -> tuple[float, float]:
    """Return the mean tau, or the lead over that of other scores, and its error by leaving out each network."""

    def lead(without: str = "") -> float:
        own = _mean_tau(cells, scores, without)
        return own - (_mean_tau(cells, others, without) if others is not None else 0.0)

    networks = {key.rpartition("/")[0] for cell in cells for key in cell["worth"]}
    left = np.array([lead(network) for network in sorted(networks)])
    error = ((len(left) - 1) * left.var()) ** 0.5
    return lead(), float(error)


def _mean_tau(cells: list[Any], scores: Mapping[str, float], without: str = "") -> float:
    """Return Kendall's tau of scores and worth, mean over cells, without the checkpoints of one network."""
    taus = []
    for cell in cells:
        worth = {k: x for k, x in cell["worth"].items() if k.rpartition("/")[0] != without}
        taus.append(kendalltau(list(worth.values()), [scores[key] for key in worth]).statistic)
    return float(np.mean(taus))


def _loss(cell: Mapping[str, Any], scores: Mapping[str, float]) -> float:
    """Return the accuracy lost by taking the prompt that a ranking puts first."""
    worth = cell["worth"]
    return float(max(worth.values()) - worth[max(worth, key=lambda key: scores[key])])


def _loss_of_any(cell: Mapping[str, Any]) -> float:
    worth = list(cell["worth"].values())
    return float(max(worth) - np.mean(worth))


def _mean(values: list[float]) -> str:
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{np.mean(values):.2f} ± {error:.2f}"


if __name__ == "__main__":
    main()
