"""Resumable pretraining of a SANE on zoos.

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

from sane_plugins.autoencoder import SANE, SANEConfig, fingerprint, save_sane
from sane_plugins.errors import UsageError, ZooError
from sane_plugins.pretraining.distributed import World
from sane_plugins.pretraining.permuted_dataset import PermutedDataset, build_datasets
from sane_plugins.pretraining.presets import PretrainOptions
from sane_plugins.pretraining.trainer_state import StateSaver, TrainerState, restore_state
from sane_plugins.pretraining.training_log import TrainingLog
from sane_plugins.pretraining.training_step import BehaviorTerm, PretrainContext, take_step
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.runtime import drawing_from
from sane_plugins.zoo import Zoo

_RESULT_NEUTRAL_OPTIONS = {
    "device",
    "save_every",
    "log_every",
}  # change no result, so a resumed run may change them


def pretrain(
    zoos: Sequence[Zoo],
    config: SANEConfig,
    options: PretrainOptions,
    out: str | Path,
    *,
    resume: bool = False,
    report: Report = silent,
    behaviour: BehaviorTerm | None = None,
    datasets: Sequence[PermutedDataset] | None = None,
    start: SANE | None = None,
) -> SANE:
    """Train a SANE on all networks of the zoos and write it to `out`.

    `datasets` are those zoos' as `prepare_datasets` makes them, where they are there already. Training begins
    with the parameters of `start`, whose shape `config` must have, instead of random ones. `behaviour` is
    an additional loss, weighted by `options.behaviour`. Every step uses a generator seeded
    with the run's seed and the step, so a resumed run takes the same steps as an uninterrupted one. State
    and log are files next to `out`; the state is deleted at the end. Within `process_group` several
    processes train together, and the first one writes.
    """
    out, world = Path(out), World.current()
    _require_compatible(config, options, behaviour, world)
    config = replace(config, fills=options.hidden > 0 or (start is not None and start.config.fills))
    if start is not None:
        _require_shape(start, config, options)
    datasets = datasets or prepare_datasets(zoos, config, options, report)
    if not datasets:
        raise ZooError(
            ", ".join(zoo.name for zoo in zoos) or "no zoo",
            "no network with finite weights was found",
            "pretraining needs some",
            "check the zoo with 'sane-plugins zoo show'",
        )
    if config.scale == "zoo":
        config = replace(config, slots=len(datasets[0].zoo_scale))
    run = _new_run(config, options, datasets, TrainingLog(log_path(out), options.log_every), start)
    if resume and state_path(out).exists():
        restore_state(run, state_path(out))
    moved = [dataset.to(options.device) for dataset in datasets]
    _train(run, PretrainContext.build(run.model, moved, options, world, behaviour), out, report)
    run.model.eval().requires_grad_(False)
    if world.is_first:
        begun = {} if start is None else {"start": fingerprint(start)}
        save_sane(run.model, out, {"recipe": asdict(options), "zoos": _zoo_records(zoos), **begun})
        state_path(out).unlink(missing_ok=True)
    return run.model


def prepare_datasets(
    zoos: Sequence[Zoo], config: SANEConfig, options: PretrainOptions, report: Report = silent
) -> list[PermutedDataset]:
    """Return the samples of zoos as `pretrain` draws windows from them, the same for equal options."""
    return build_datasets(
        zoos,
        config,
        options.views,
        torch.Generator().manual_seed(options.seed),
        report,
        aligned=options.aligned,
        canonical=options.canonical,
    )


def state_path(out: Path) -> Path:
    """Return the path of an unfinished run's state."""
    return out.with_name(out.name + ".state")


def log_path(out: Path) -> Path:
    """Return the path of a run's log."""
    return out.with_name(out.name + ".jsonl")


def _require_compatible(
    config: SANEConfig, options: PretrainOptions, behaviour: BehaviorTerm | None, world: World
) -> None:
    """Raise `UsageError` for incompatible options."""
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


def _require_shape(start: SANE, config: SANEConfig, options: PretrainOptions) -> None:
    """Raise `UsageError` if training cannot begin with a SANE's parameters."""
    if options.hidden and not start.config.fills:
        raise UsageError(
            "the SANE to begin from",
            "it has no parameters for tokens that are not shown",
            f"the weight of such tokens is {options.hidden}",
            "leave them out, or begin from another",
        )
    own, given = asdict(start.config), asdict(config)
    if differing := sorted(name for name in own if own[name] != given[name]):
        raise UsageError(
            "the SANE to begin from",
            f"its {', '.join(differing)} differ from what was asked for",
            "training keeps its shape",
            "leave out options that change the shape",
        )


def _new_run(
    config: SANEConfig,
    options: PretrainOptions,
    datasets: Sequence[PermutedDataset],
    log: TrainingLog,
    start: SANE | None,
) -> TrainerState:
    with drawing_from(torch.Generator().manual_seed(options.seed)):
        model = SANE(config)
    if config.scale == "zoo":
        model.get_buffer("zoo_scale").copy_(datasets[0].zoo_scale)
    if start is not None:
        model.load_state_dict(start.state_dict())
    model = model.to(options.device)
    decay = options.weight_decay
    optimizer = torch.optim.AdamW(model.parameters(), options.lr, weight_decay=decay)
    settings = {
        k: v
        for k, v in {**asdict(config), **asdict(options)}.items()
        if k not in _RESULT_NEUTRAL_OPTIONS
    }
    settings["zoos"] = _fingerprint(datasets)
    if start is not None:
        settings["start"] = fingerprint(start)
    return TrainerState(model, optimizer, log, settings)


def _fingerprint(datasets: Sequence[PermutedDataset]) -> str:
    """Return a hash of the samples, so that a run does not resume on different ones."""
    digest = hashlib.sha256()
    for dataset in datasets:
        digest.update(json.dumps([dataset.zoo, [entry.key for entry in dataset.entries]]).encode())
        digest.update(dataset.values.numpy().data)
    return digest.hexdigest()


def _zoo_records(zoos: Sequence[Zoo]) -> list[dict[str, Any]]:
    """Return what each zoo is; of one that is given several times, and drawn as often, how many times."""
    records: dict[str, dict[str, Any]] = {}
    for zoo in zoos:
        told = {"name": zoo.name, "networks": len(zoo.networks), "checkpoints": len(zoo)}
        record = records.setdefault(json.dumps(told), told)
        if record is not told:
            record["times"] = record.get("times", 1) + 1
    return list(records.values())


def _train(run: TrainerState, context: PretrainContext, out: Path, report: Report) -> None:
    """Run the remaining steps; the log is written before the state, and rewound to it on resuming."""
    options, saver = context.options, StateSaver(state_path(out), context.options.save_every)
    if context.world.is_first:
        run.log.rewind(run.step)
    while run.step < options.steps:
        losses = take_step(run, context)
        run.step += 1
        rate = run.optimizer.param_groups[0]["lr"]
        line = run.log.add(run.step, losses, rate, run.step == options.steps)
        if context.world.is_first:
            if line:
                run.log.write(line)
            saver.save_if_due(run)
        note = " ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        report(Progress(job="pretrain", done=run.step, total=options.steps, note=note))
