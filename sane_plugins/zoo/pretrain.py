"""Pretraining of a SANE on zoos, which resumes where it was killed (spec section 4)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from sane_plugins.errors import UsageError, ZooError
from sane_plugins.latent import checkpoint
from sane_plugins.latent.model import SANE, SANEConfig
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.weights.writing import write_whole
from sane_plugins.zoo.losses import masked_mse, nt_xent
from sane_plugins.zoo.store import Zoo
from sane_plugins.zoo.views import Bank, Batch, build_banks, draw, noisy

_SIDE_WEIGHT = 0.1
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """How a SANE is trained. Learning rate and weight decay are AdamW's, on a one-cycle schedule."""

    steps: int = 4000
    batch: int = 32
    lr: float = 1e-3
    weight_decay: float = 3e-9
    gamma: float = 0.05
    temperature: float = 0.1
    noise: float = 0.1
    behaviour: float = 0.0
    views: int = 7
    aligned: bool = True
    seed: int = 0
    bf16: bool = True
    save_every: int = 250
    device: str = "cpu"


# The behaviour term: of a batch, its decoded values (2B, S, D) and side (2B, S, 4), first views first, and
# a generator, the mean loss over its windows. Drawing from the generator keeps a resumed run exact.
Behaviour = Callable[[Batch, torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]


@dataclass
class _Run:
    """A model under training and how far it is."""

    model: SANE
    optimizer: torch.optim.Optimizer
    behaviour: Behaviour | None
    step: int = 0


def pretrain(
    zoos: Sequence[Zoo], config: SANEConfig, options: PretrainOptions, out: str | Path, *,
    resume: bool = False, report: Report = silent, behaviour: Behaviour | None = None,
) -> SANE:  # fmt: skip
    """Train a SANE on all networks of the zoos and write it to `out`.

    `behaviour` is one more loss, weighted with `options.behaviour`.

    Every step draws from a generator seeded with the run's seed and the step, so that a resumed run
    takes the same steps as an uninterrupted one. The state lies beside `out` until the end.
    """
    out = Path(out)
    state = out.with_name(out.name + ".state")
    banks = build_banks(
        zoos, config.token_width, options.views, torch.Generator().manual_seed(options.seed), report,
        aligned=options.aligned,
    )  # fmt: skip
    if not banks:
        raise ZooError(
            ", ".join(zoo.name for zoo in zoos) or "no zoo", "no network with finite weights was found",
            "pretraining needs some", "check the zoo with 'sane-plugins zoo show'",
        )  # fmt: skip
    run = _start(config, options, behaviour)
    if resume and state.exists():
        _restore(run, state, config, options)
    while run.step < options.steps:
        loss = _train_step(run, banks, options)
        run.step += 1
        if run.step % options.save_every == 0:
            _keep(run, state, options)
        report(Progress(job="pretrain", done=run.step, total=options.steps, note=loss))
    run.model.eval().requires_grad_(False)
    checkpoint.save(run.model, out, {"recipe": asdict(options)})
    state.unlink(missing_ok=True)
    return run.model


def one_cycle(done: float) -> float:
    """Return the share of the peak rate after a share `done` of the steps: up over 30 %, then down."""
    up, start, end = 0.3, 1 / 25, 1e-4
    if done < up:
        return start + (1 - start) * (1 - math.cos(math.pi * done / up)) / 2
    return end + (1 - end) * (1 + math.cos(math.pi * (done - up) / (1 - up))) / 2


def _start(config: SANEConfig, options: PretrainOptions, behaviour: Behaviour | None) -> _Run:
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        model = SANE(config).to(options.device)
    decay = options.weight_decay
    optimizer = torch.optim.AdamW(model.parameters(), options.lr, weight_decay=decay)
    return _Run(model, optimizer, behaviour)


def _train_step(run: _Run, banks: list[Bank], options: PretrainOptions) -> str:
    rng = torch.Generator().manual_seed(options.seed * 1_000_003 + run.step)
    # Every token of every network is drawn equally often, whatever the architecture.
    sizes = torch.tensor([float(bank.side[..., 0].numel()) for bank in banks])
    bank = banks[int(torch.multinomial(sizes, 1, generator=rng))]
    config = run.model.config
    batch = draw(bank, options.batch, config.window + 2 * config.halo, rng)
    for group in run.optimizer.param_groups:
        group["lr"] = options.lr * one_cycle(run.step / options.steps)
    losses = _losses(run, batch, options, rng)
    weights = _weights(options)
    loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
    run.optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    return " ".join(f"{name} {float(value.detach()):.3f}" for name, value in losses.items())


def _weights(options: PretrainOptions) -> dict[str, float]:
    """Return the weight of each loss in their sum."""
    rest = 1 - options.gamma
    return {
        "values": rest, "side": rest * _SIDE_WEIGHT, "contrast": options.gamma,
        "behaviour": options.behaviour,
    }  # fmt: skip


def _losses(
    run: _Run, batch: Batch, options: PretrainOptions, rng: torch.Generator
) -> dict[str, torch.Tensor]:
    """Return the losses over both views of a batch, by name."""
    model = run.model
    device = torch.device(options.device)
    clean = torch.cat([batch.first, batch.second])
    seen = noisy(clean, options.noise, rng)
    clean, seen, side, places, mask = (
        x.to(device)
        for x in (clean, seen, *(x.repeat(2, 1, 1) for x in (batch.side, batch.places, batch.mask)))
    )
    # The flash kernel's backward pass is slower than plain matrix products on CPUs.
    attention = sdpa_kernel([SDPBackend.MATH] if device.type == "cpu" else _ATTENTION)
    with attention, torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
        latents = model.encode(seen, side, places)
        values, side_out = model.decode(latents, places)
        first, second = model.project(latents.mean(1)).chunk(2)
    losses = {
        "values": masked_mse(values, clean, mask),
        "side": ((side_out - side) ** 2).mean(),
        "contrast": nt_xent(first, second, options.temperature),
    }
    if run.behaviour is not None and options.behaviour:
        losses["behaviour"] = run.behaviour(batch, values, side_out, rng)
    return losses


def _keep(run: _Run, path: Path, options: PretrainOptions) -> None:
    """Write what a resumed run needs, beside and renamed."""
    tensors = {f"model.{key}": value for key, value in run.model.state_dict().items()}
    for index, moments in run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
    told = {"step": str(run.step), "sane_run": _told(run.model.config, options)}
    write_whole(path, lambda partial: save_file(tensors, partial, metadata=told))


def _restore(run: _Run, path: Path, config: SANEConfig, options: PretrainOptions) -> None:
    """Take up a kept run; refuse one of other options."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        if metadata["sane_run"] != _told(config, options):
            raise UsageError(
                path, "the interrupted run had other options", "a run resumes with the same ones",
                "repeat them, or delete the file to start anew",
            )  # fmt: skip
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    model = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    run.model.load_state_dict(model)
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = value
    groups = run.optimizer.state_dict()["param_groups"]
    run.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    run.step = int(metadata["step"])


def _told(config: SANEConfig, options: PretrainOptions) -> str:
    return json.dumps({**asdict(config), **asdict(options)}, sort_keys=True)
