"""How much of its accuracy a network keeps when it is encoded and decoded, and what that owes to.

    python benchmarks/reconstruction.py --data ../shared/data [--zoos runs/zoos] [--sane FILE] [--ablation [--seeds N]]

Networks of the evaluation pools, which the shipped SANE has not seen, are encoded, decoded and run on 1,000 test
images; batch norms measure their statistics anew on training images. Only networks above 30 % accuracy count,
because the rest have none to lose. `--ablation` trains the recipe, and the recipe without one of its parts, three
times each at a small equal budget on the published zoos (without normalisation there is no behaviour term
either, since it needs decoded scales); each run is kept in runs/ and not repeated,
and a killed call goes on with the zoos that are missing. Writes
reconstruction.json and .md in benchmarks/results/. Exit code 1: a published zoo keeps less than 90 % (median).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoodata
from zoodata import PUBLISHED, RESULTS, RUNS, outside_pool, recipe, task_of

from sane_plugins.autoencoder import SANE, SANEConfig, decode, encode, fingerprint
from sane_plugins.grafting import condition
from sane_plugins.pretraining import BehaviorLoss, PretrainOptions, pretrain
from sane_plugins.progress import silent
from sane_plugins.tasks import Task, accuracy
from sane_plugins.weights import load_into
from sane_plugins.zoo import Entry, Zoo, evaluation_pool

IMAGES, LEAST, TARGET, SEEDS = 1000, 0.3, 0.9, 3
BATCHES, BATCH = 50, 64
STEPS = 400
VARIANTS = (
    "the recipe",
    "no alignment",
    "no normalisation",
    "no contrastive term",
    "no behaviour term",
)


def main() -> None:
    """Measure the shipped SANE and, if asked, the ablation; print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--zoos", type=Path, default=RUNS / "zoos")
    parser.add_argument("--sane", type=Path, help="a SANE file; the embedded one by default")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of the ablation")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, note = zoodata.sane(arguments.sane)
    zoos = zoodata.zoos(arguments.data, arguments.zoos)
    tasks = {zoo.name: task_of(zoo, arguments.data) for zoo in zoos}
    path = RESULTS / "reconstruction.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    if result.get("sane") != fingerprint(model):
        result |= {"sane": fingerprint(model), "note": note, "zoos": {}}
    if arguments.ablation:
        published = [zoo for zoo in zoos if zoo.name in PUBLISHED]
        result["ablation"] = _ablation(published, tasks, arguments.seeds)
    for column, chosen in COLUMNS.items():
        for zoo in zoos:
            told = result["zoos"].setdefault(zoo.name, {})
            if column not in told:
                told[column] = spread_of(model, chosen(zoo), tasks[zoo.name])
                _write(result, path)
    _write(result, path)
    print(tables(result))
    sys.exit(
        0
        if all(result["zoos"][name]["last epoch"]["median"] >= TARGET for name in PUBLISHED)
        else 1
    )


def _write(result: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(tables(result) + "\n")


def tables(result: Mapping[str, Any]) -> str:
    """Return the zoos, and the ablation where there is one, as markdown tables."""
    lines = [
        "Share of its accuracy that an unseen network keeps: median (quartiles; number of networks).",
        "",
        "| zoo | last epoch | earlier epochs |",
        "|---|---|---|",
    ]
    for name, told in result["zoos"].items():
        cells = [_cell(told.get(column)) for column in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if ablation := result.get("ablation"):
        names = list(ablation["runs"][0]["kept"])
        lines += [
            "",
            f"Ablation, {ablation['steps']} steps: median at the last epoch, mean ± deviation (number of seeds).",
            "",
            "| trained with | " + " | ".join(names) + " |",
            "|---" * (len(names) + 1) + "|",
        ]
        for variant in VARIANTS:
            found = [run["kept"] for run in ablation["runs"] if run["variant"] == variant]
            if not found:
                lines.append(f"| {variant} |" + " not run |" * len(names))
                continue
            cells = [
                f"{np.mean(x):.3f} ± {np.std(x):.3f} ({len(x)})"
                for x in ([kept[n] for kept in found] for n in names)
            ]
            lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(told: Mapping[str, float] | None) -> str:
    if told is None:
        return "not measured"
    return f"{told['median']:.3f} ({told['low']:.3f} to {told['high']:.3f}; {told['networks']})"


def last_of(zoo: Zoo) -> Zoo:
    """Return the test networks of a zoo at their last epoch."""
    return zoo.where(_in_pool(zoo)).where(_is_last(zoo))


def earlier_of(zoo: Zoo) -> Zoo:
    """Return the test networks of a zoo at their earlier epochs."""
    is_last = _is_last(zoo)
    return zoo.where(_in_pool(zoo)).where(lambda entry: not is_last(entry))


def _in_pool(zoo: Zoo) -> Callable[[Entry], bool]:
    pool = evaluation_pool(zoo)
    return lambda entry: entry.network in pool


def _is_last(zoo: Zoo) -> Callable[[Entry], bool]:
    last = max(float(entry.properties["epoch"]) for entry in zoo.entries)
    return lambda entry: float(entry.properties["epoch"]) == last


def _shares(model: SANE, zoo: Zoo, task: Task) -> list[float]:
    """Return what each network keeps that has learned something."""
    found = (_share(model, zoo, entry, task) for entry in zoo.entries)
    return [kept for kept in found if kept is not None]


def _share(model: SANE, zoo: Zoo, entry: Entry, task: Task) -> float | None:
    """Return accuracy after over accuracy before; None for a network that has learned little."""
    x, y = task.x_test[:IMAGES], task.y_test[:IMAGES]
    module, graph = zoo.module(entry), zoo.graph(entry)
    before = accuracy(module, x, y)
    if before <= LEAST:
        return None
    load_into(module, decode(model, encode(model, graph).values, graph))
    condition(module, task.x_train, BATCHES, BATCH, torch.Generator().manual_seed(0))
    return accuracy(module.eval(), x, y) / before


def spread_of(model: SANE, zoo: Zoo, task: Task) -> dict[str, float]:
    """Return the median and quartiles of what the networks of a zoo keep, and their number."""
    kept = _shares(model, zoo, task)
    low, median, high = np.quantile(kept, [0.25, 0.5, 0.75]).tolist()
    return {"median": median, "low": low, "high": high, "networks": len(kept)}


def _ablation(zoos: list[Zoo], tasks: Mapping[str, Task], seeds: int) -> dict[str, Any]:
    runs = []
    for seed in range(seeds):
        for variant in VARIANTS:
            runs.append(
                {"variant": variant, "seed": seed, "kept": _run(variant, seed, zoos, tasks)}
            )
            print(time.strftime("%H:%M:%S"), runs[-1], file=sys.stderr, flush=True)
    return {"steps": STEPS, "seeds": seeds, "runs": runs}


def _run(variant: str, seed: int, zoos: list[Zoo], tasks: Mapping[str, Task]) -> dict[str, float]:
    """Train once, or take what an earlier call found, and return the medians by zoo."""
    config, options = changed(variant, *recipe(STEPS))
    options = replace(options, seed=seed, log_every=STEPS)
    told = json.dumps([asdict(config), asdict(options), [zoo.name for zoo in zoos]])
    kept = RUNS / "ablation" / f"{variant.replace(' ', '-')}-{seed}"
    done = kept.with_suffix(".json")
    if done.exists() and (found := json.loads(done.read_text()))["recipe"] == told:
        return dict(found["kept"])
    done.parent.mkdir(parents=True, exist_ok=True)
    behaviour = (
        BehaviorLoss({name: task.x_train for name, task in tasks.items()})
        if options.behaviour
        else None
    )
    model = pretrain(
        [outside_pool(zoo) for zoo in zoos],
        config,
        options,
        kept.with_suffix(".safetensors"),
        report=silent,
        behaviour=behaviour,
    )
    medians = {
        zoo.name: float(np.median(_shares(model, last_of(zoo), tasks[zoo.name]))) for zoo in zoos
    }
    done.write_text(json.dumps({"recipe": told, "kept": medians}))
    return medians


def changed(
    variant: str, config: SANEConfig, options: PretrainOptions
) -> tuple[SANEConfig, PretrainOptions]:
    """Return the recipe without the part that the variant names."""
    if variant == "no alignment":
        return config, replace(options, aligned=False)
    if variant == "no normalisation":
        # The behaviour term needs decoded scales, so it goes too.
        return replace(config, scale="none"), replace(options, behaviour=0.0)
    if variant == "no contrastive term":
        return config, replace(options, gamma=0.0)
    if variant == "no behaviour term":
        return config, replace(options, behaviour=0.0)
    return config, options


COLUMNS = {"last epoch": last_of, "earlier epochs": earlier_of}


if __name__ == "__main__":
    main()
