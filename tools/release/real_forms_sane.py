"""Stages of real_forms.py that pretrain the SANE, and decode networks that it has not seen."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from real_forms_shared import RECIPE, UNSEEN, Lines, say

from sane_plugins.autoencoder import (
    SANEConfig,
    decode,
    encode,
    fingerprint,
    load_sane,
    read_metadata,
    save_sane,
)
from sane_plugins.grafting import condition
from sane_plugins.pretraining import (
    PretrainOptions,
    World,
    log_path,
    prepare_datasets,
    pretrain,
    process_group,
    read_log,
    state_path,
)
from sane_plugins.tasks import accuracy
from sane_plugins.weights import load_into
from sane_plugins.zoo import Entry, Zoo, evaluation_pool, is_zoo
from sane_plugins.zoo_training import Recipe, TrainingImages
from sane_plugins.zoo_training.augmentation import resized
from sane_plugins.zoo_training.recipe_zoo import load_images

PROBE_STEPS = 60
MEASURED = 1000  # images
NORM_BATCHES, NORM_BATCH = 20, 100


def sane(arguments: argparse.Namespace) -> None:
    """Pretrain on the real forms and on the toys; with --minutes as many steps as fit."""
    start = None if arguments.start is None else load_sane(arguments.start)
    config = SANEConfig(
        model_width=arguments.width,
        heads=arguments.heads,
        layers=arguments.layers,
        latent_width=arguments.latent,
        places=arguments.places,
    )
    config = config if start is None else start.config
    options = PretrainOptions(
        steps=arguments.steps or 1,
        batch=arguments.batch,
        accumulate=arguments.accumulate,
        lr=arguments.lr,
        noise=arguments.noise,
        views=arguments.views,
        side=arguments.side,
        hidden=arguments.hidden,
        canonical=not arguments.in_file_order,
        balance="zoos",  # the architectures of each
        save_every=1000,
        log_every=20,
    )
    out = arguments.work / "sane.safetensors"
    with process_group(arguments.device) as device:
        options, zoos = replace(options, device=device), _seen(arguments.work, arguments.toys)
        started, report = time.monotonic(), Lines()
        datasets = prepare_datasets(zoos, config, options, report)
        say(f"{time.monotonic() - started:.0f} s to order and cut {len(datasets)} data sets")
        if not arguments.steps:
            probe = partial(pretrain, zoos, config, datasets=datasets, start=start)
            options = _steps_that_fit(probe, options, started, arguments)
        begun: dict[str, Any] = {"datasets": datasets, "start": start}
        model = pretrain(zoos, config, options, out, resume=True, report=report, **begun)
        if not World.current().is_first:
            return
    told = read_metadata(out)
    told |= {"data": "all but a fifth of the real forms' networks and the toys' evaluation pools"}
    save_sane(model, arguments.work / "sane-half.safetensors", told, torch.float16)


def _seen(work: Path, toys: int = 1) -> list[Zoo]:
    """Return what pretraining sees of all zoos, the toys so many times."""
    real = Zoo.open(work / "real-forms")
    unseen = evaluation_pool(real, UNSEEN)
    paths = [*work.glob("part1/*"), *sorted(work.glob("part3/*")) * toys]
    others = [Zoo.open(path) for path in paths if is_zoo(path)]
    return [real.where(lambda entry: entry.network not in unseen), *others]


def _steps_that_fit(
    probe: Callable[[PretrainOptions, Path], object],
    options: PretrainOptions,
    started: float,
    arguments: argparse.Namespace,
) -> PretrainOptions:
    """Return the options with as many steps as the minutes from `started` on allow, after a few for trial."""
    plan = arguments.work / "sane.steps.json"
    out = arguments.work / "sane.safetensors"
    if (
        plan.exists() and state_path(out).exists()
    ):  # a resumed run takes the steps that it began with
        return replace(options, steps=json.loads(plan.read_text()))
    if arguments.minutes is None:
        sys.exit("name --steps or --minutes")
    trial = arguments.work / "probe.safetensors"
    log_path(trial).unlink(missing_ok=True)
    probe(replace(options, steps=PROBE_STEPS, log_every=PROBE_STEPS // 3), trial)
    lines = read_log(log_path(trial))
    each = (lines[-1]["seconds"] - lines[0]["seconds"]) / (lines[-1]["step"] - lines[0]["step"])
    left = 60 * arguments.minutes - (time.monotonic() - started)
    steps = max(PROBE_STEPS, int(0.95 * left / each))
    say(f"{each * 1e3:.1f} ms a step: {steps} steps")
    plan.write_text(json.dumps(steps))
    return replace(options, steps=steps)


def measure(arguments: argparse.Namespace) -> None:
    """Decode the real forms that pretraining has not seen, and run them on their test images."""
    half = arguments.work / "sane-half.safetensors"  # as it is kept
    path = half if half.exists() else arguments.work / "sane.safetensors"
    model = load_sane(path, arguments.device)
    real, recipe = Zoo.open(arguments.work / "real-forms"), Recipe.read(RECIPE)
    unseen = evaluation_pool(real, UNSEEN)
    last = {entry.network: entry for entry in real.entries if entry.network in unseen}
    loaded: dict[str, TrainingImages] = {}
    rows = []
    for entry in last.values():
        task = str(entry.properties["dataset"])
        if task not in loaded:
            found = load_images(recipe.tasks[task], arguments.work / "images")
            loaded[task] = found.on(arguments.device)
        rows.append(_decoded_accuracy(model, real, entry, loaded[task]))
        say(json.dumps(rows[-1]))
    learnt = [row["kept"] for row in rows if row["accuracy"] > 2 * row["chance"]]
    told = {
        "sane": fingerprint(model),
        "networks": rows,
        "median_kept": median(learnt) if learnt else None,
    }
    (arguments.work / "measured.json").write_text(json.dumps(told, indent=1) + "\n")
    say(f"of {len(learnt)} networks that learnt, the median keeps {told['median_kept']}")


def _decoded_accuracy(model: Any, real: Zoo, entry: Entry, given: TrainingImages) -> dict[str, Any]:
    """Return a network's accuracy as it is, decoded, and decoded with statistics measured anew."""
    size = int(entry.properties["size"])
    x, y = resized(given.x_test[:MEASURED], size), given.y_test[:MEASURED]
    module = real.module(entry).float().to(x.device)  # a zoo that came back is in half precision
    graph, before = real.graph(entry), accuracy(module, x, y)
    decoded = decode(model, encode(model, graph).values, graph)
    load_into(module.cpu(), decoded.replace({p.key: t.cpu() for p, t in decoded.items()}))
    module.to(x.device)
    after = accuracy(module, x, y)
    training = resized(given.x_train[: NORM_BATCHES * NORM_BATCH], size)
    with torch.no_grad():
        condition(module, training, NORM_BATCHES, NORM_BATCH, torch.Generator().manual_seed(0))
    anew = accuracy(module, x, y)
    return {
        "network": entry.network,
        "chance": 1 / int(entry.factory["classes"]),
        "accuracy": before,
        "decoded": after,
        "measured_anew": anew,
        "kept": anew / before if before else 0.0,
    }
