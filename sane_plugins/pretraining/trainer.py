"""Pretraining of a SANE on zoos, which resumes where it was killed.

The method: docs/explanation/sane.md, sections 4 and 4.6.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from sane_plugins.autoencoder import SANE, SANEConfig, save_sane
from sane_plugins.errors import UsageError, ZooError
from sane_plugins.pretraining.distributed import World
from sane_plugins.pretraining.permuted_dataset import build_banks
from sane_plugins.pretraining.presets import PretrainOptions
from sane_plugins.pretraining.run_state import StateKeeper, TrainerState, restore
from sane_plugins.pretraining.step import Behavior, PretrainContext, take_step
from sane_plugins.pretraining.training_log import TrainingLog
from sane_plugins.pretraining.views import PermutedDataset
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.zoo import Zoo

__all__ = ["Behavior", "PretrainOptions", "log_path", "pretrain", "state_path"]

_FREE = {"device", "save_every", "log_every"}  # change no result, so a resumed run may change them


def pretrain(
    zoos: Sequence[Zoo],
    config: SANEConfig,
    options: PretrainOptions,
    out: str | Path,
    *,
    resume: bool = False,
    report: Report = silent,
    behaviour: Behavior | None = None,
) -> SANE:
    """Train a SANE on all networks of the zoos and write it to `out`.

    `behaviour` is one more loss, weighted with `options.behaviour`. Every step draws from a generator
    seeded with the run's seed and the step, so that a resumed run takes the same steps as an uninterrupted
    one. The state lies beside `out` until the end, the log stays there. Within `distributed.joined` several
    processes train as one, and the first one writes.
    """
    out, world = Path(out), World.here()
    _require_fit(config, options, behaviour, world)
    rng = torch.Generator().manual_seed(options.seed)
    banks = build_banks(zoos, config, options.views, rng, report, aligned=options.aligned)
    if not banks:
        raise ZooError(
            ", ".join(zoo.name for zoo in zoos) or "no zoo",
            "no network with finite weights was found",
            "pretraining needs some",
            "check the zoo with 'sane-plugins zoo show'",
        )
    if config.scale == "zoo":
        config = replace(config, slots=len(banks[0].scale))
    run = _start(config, options, banks, TrainingLog(log_path(out), options.log_every))
    if resume and state_path(out).exists():
        restore(run, state_path(out))
    _train(run, PretrainContext.of(run.model, banks, options, world, behaviour), out, report)
    run.model.eval().requires_grad_(False)
    if world.is_first:
        save_sane(run.model, out, {"recipe": asdict(options), "zoos": _named(zoos)})
        state_path(out).unlink(missing_ok=True)
    return run.model


def state_path(out: Path) -> Path:
    """Return where the state of an unfinished run lies."""
    return out.with_name(out.name + ".state")


def log_path(out: Path) -> Path:
    """Return where the log of a run lies."""
    return out.with_name(out.name + ".jsonl")


def _require_fit(
    config: SANEConfig, options: PretrainOptions, behaviour: Behavior | None, world: World
) -> None:
    """Raise `UsageError` for options that do not go together."""
    if options.batch % world.size:
        raise UsageError(
            f"a batch of {options.batch}",
            f"{world.size} processes share it",
            "each takes an equal part",
            "choose a multiple of the number of processes",
        )
    if options.behaviour and behaviour is None:
        raise UsageError(
            "the behaviour term",
            f"its weight is {options.behaviour} and there are no images",
            "networks are run on images",
            "give images, or leave the term out",
        )
    if options.behaviour and config.scale != "tensor":
        raise UsageError(
            "the behaviour term",
            f"the scale is that of '{config.scale}'",
            "decoded networks need their own scale",
            "leave out the behaviour term",
        )


def _start(
    config: SANEConfig, options: PretrainOptions, banks: list[PermutedDataset], log: TrainingLog
) -> TrainerState:
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        model = SANE(config)
    if config.scale == "zoo":
        model.get_buffer("zoo_scale").copy_(banks[0].scale)
    model = model.to(options.device)
    decay = options.weight_decay
    optimizer = torch.optim.AdamW(model.parameters(), options.lr, weight_decay=decay)
    told = {k: v for k, v in {**asdict(config), **asdict(options)}.items() if k not in _FREE}
    return TrainerState(model, optimizer, log, {**told, "zoos": _fingerprint(banks)})


def _fingerprint(banks: list[PermutedDataset]) -> str:
    """Name the samples, so that a run does not resume on others."""
    found = hashlib.sha256()
    for bank in banks:
        found.update(json.dumps([bank.zoo, [entry.key for entry in bank.entries]]).encode())
        found.update(bank.values.numpy().data)
    return found.hexdigest()


def _named(zoos: Sequence[Zoo]) -> list[dict[str, Any]]:
    return [
        {"name": zoo.name, "networks": len(zoo.networks), "checkpoints": len(zoo)} for zoo in zoos
    ]


def _train(run: TrainerState, job: PretrainContext, out: Path, report: Report) -> None:
    """Take the steps that are left; the log is written before the state, and rewound to it on resuming."""
    options, keeper = job.options, StateKeeper(state_path(out), job.options.save_every)
    if job.world.is_first:
        run.log.rewind(run.step)
    while run.step < options.steps:
        losses = take_step(run, job)
        run.step += 1
        rate = run.optimizer.param_groups[0]["lr"]
        line = run.log.add(run.step, losses, rate, run.step == options.steps)
        if job.world.is_first:
            if line:
                run.log.write(line)
            keeper.keep(run)
        note = " ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        report(Progress(job="pretrain", done=run.step, total=options.steps, note=note))
