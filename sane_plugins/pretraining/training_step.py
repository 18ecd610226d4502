"""One training step: draw batches, accumulate gradients of the losses, update the parameters.

The method: docs/explanation/sane.md, sections 4.4 and 4.5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import cast

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from sane_plugins.autoencoder import SANE
from sane_plugins.errors import ZooError
from sane_plugins.pretraining.distributed import World
from sane_plugins.pretraining.learning_rate import one_cycle
from sane_plugins.pretraining.losses import masked_mse, masked_variance, nt_xent
from sane_plugins.pretraining.permuted_dataset import PermutedDataset
from sane_plugins.pretraining.presets import PretrainOptions
from sane_plugins.pretraining.trainer_state import TrainerState
from sane_plugins.pretraining.view_batch import (
    ViewBatch,
    add_noise,
    draw_hidden,
    draw_windows,
)

_ATTENTION_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

# The behaviour term maps a batch, its decoded values (2B, S, D) and side (2B, S, 4), first views first, and
# a generator to the mean loss over its windows. Drawing from the generator keeps a resumed run exact.
BehaviorTerm = Callable[[ViewBatch, torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]
Decode = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Encode = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True)
class PretrainContext:
    """Fixed context of a training run: data, options, processes, and the (compiled) model functions."""

    datasets: Sequence[PermutedDataset]
    options: PretrainOptions
    world: World
    behaviour: BehaviorTerm | None
    encode: Encode
    decode: Decode

    @classmethod
    def build(
        cls,
        model: SANE,
        datasets: Sequence[PermutedDataset],
        options: PretrainOptions,
        world: World,
        behaviour: BehaviorTerm | None,
    ) -> PretrainContext:
        """Build the context, compiling the model if requested."""
        encode: Encode = model.encode
        decode: Decode = model.decode
        if options.compiled:  # static shapes, so that no step depends on earlier ones
            encode = cast(Encode, torch.compile(encode, dynamic=False))
            decode = cast(Decode, torch.compile(decode, dynamic=False))
        return cls(datasets, options, world, behaviour, encode, decode)


def take_step(run: TrainerState, context: PretrainContext) -> dict[str, float]:
    """Take one training step and return the losses before the update."""
    options = context.options
    rng = torch.Generator().manual_seed(options.seed * 1_000_003 + run.step)
    for group in run.optimizer.param_groups:
        group["lr"] = options.lr * one_cycle(run.step / options.steps)
    run.optimizer.zero_grad()
    shares = _backward(run.model, context, rng)
    parameters = [p for p in run.model.parameters() if p.grad is not None]
    context.world.sum_over_processes(
        [*(p.grad for p in parameters if p.grad is not None), *shares.values()]
    )
    losses = {name: loss.item() for name, loss in shares.items()}
    if not all(map(isfinite, losses.values())):
        raise ZooError(
            f"step {run.step + 1}",
            "a loss is not finite",
            "training needs finite ones",
            "choose a lower learning rate",
        )
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    run.optimizer.step()
    return losses


def _backward(
    model: SANE, context: PretrainContext, rng: torch.Generator
) -> dict[str, torch.Tensor]:
    """Accumulate the gradients of this process's share of a step, and return its share of the losses."""
    options, totals = context.options, dict[str, torch.Tensor]()
    span = model.config.trained_span
    for _ in range(options.accumulate):
        batch = draw_windows(
            _sample_dataset(context.datasets, options, rng), options.batch, span, rng
        )
        losses = {k: v / options.accumulate for k, v in _losses(model, context, batch, rng).items()}
        weights = _loss_weights(options)
        torch.stack([weights[name] * loss for name, loss in losses.items()]).sum().backward()
        totals = {name: totals.get(name, 0) + loss.detach() for name, loss in losses.items()}
    return totals


def _sample_dataset(
    datasets: Sequence[PermutedDataset], options: PretrainOptions, rng: torch.Generator
) -> PermutedDataset:
    architectures = Counter(dataset.shapes for dataset in datasets)
    sizes = {
        "tokens": [dataset.side[..., 0].numel() for dataset in datasets],
        "networks": [len(dataset.values) for dataset in datasets],
        "zoos": [1 for _ in datasets],
        "architectures": [1 / architectures[dataset.shapes] for dataset in datasets],
    }[options.balance]
    drawn = torch.multinomial(torch.tensor(sizes, dtype=torch.float32), 1, generator=rng)
    return datasets[int(drawn)]


def _loss_weights(options: PretrainOptions) -> Mapping[str, float]:
    """Return the weight of each loss in the total."""
    reconstruction = 1 - options.gamma
    return {
        "values": reconstruction,
        "side": reconstruction * options.side,
        "hidden": reconstruction * options.hidden,
        "contrast": options.gamma,
        "behaviour": options.behaviour,
    }


def _losses(
    model: SANE, context: PretrainContext, batch: ViewBatch, rng: torch.Generator
) -> dict[str, torch.Tensor]:
    """Return this process's share of each loss over both views of a batch, by name."""
    options, device = context.options, torch.device(context.options.device)
    whole = torch.cat([batch.first, batch.second])
    rows = context.world.rows(len(batch))
    part, both = batch.rows(rows), torch.cat([rows, rows + len(batch)])
    clean, noised, side, positions, mask = (
        x.to(device)
        for x in (
            whole[both],
            add_noise(whole, options.noise, rng)[both],
            *(x.repeat(2, 1, 1) for x in (part.side, part.positions, part.mask)),
        )
    )
    # The flash kernel's backward pass is slower than plain matrix products on CPUs.
    attention = sdpa_kernel([SDPBackend.MATH] if device.type == "cpu" else _ATTENTION_BACKENDS)
    hidden = _hidden_tokens(whole, options, rng)
    own_hidden = None if hidden is None else hidden[both].to(device)
    with attention, torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
        latents = context.encode(noised, side, positions, own_hidden)
        values, side_out = context.decode(latents, positions)
        first, second = map(context.world.gather, model.project_latents(latents).chunk(2))
    fraction = len(rows) / len(batch)
    all_masks = batch.mask.repeat(2, 1, 1)
    losses = {"values": masked_mse(values, clean, mask, all_masks.sum().to(device))}
    if hidden is not None and own_hidden is not None:
        losses = _seen_and_hidden(values, clean, (mask, own_hidden), (all_masks, hidden))
    if options.loss == "masked":
        variance = masked_variance(whole, all_masks).to(device)
        losses = {name: loss / variance for name, loss in losses.items()}
    if model.config.side:
        losses["side"] = ((side_out - side) ** 2).mean() * fraction
    losses["contrast"] = nt_xent(first, second, options.temperature) * fraction
    if context.behaviour is not None and options.behaviour:
        losses["behaviour"] = context.behaviour(part, values, side_out, rng) * fraction
    return losses


def _hidden_tokens(
    whole: torch.Tensor, options: PretrainOptions, rng: torch.Generator
) -> torch.Tensor | None:
    """Draw which tokens (2B, S) of all windows the encoder is not shown; None where it is shown all."""
    if not options.hidden:
        return None
    drawn = draw_hidden(whole.shape[0], whole.shape[1], options.hidden_share, rng)
    return drawn.to(whole.device)


def _seen_and_hidden(
    values: torch.Tensor,
    clean: torch.Tensor,
    own: tuple[torch.Tensor, torch.Tensor],
    whole: tuple[torch.Tensor, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Return the error in tokens that were shown, and in those that were not, each over its own number.

    `own` and `whole` are masks of real values and of hidden tokens, of this process and of the whole batch.
    """
    found = {}
    for name, is_hidden in (("values", False), ("hidden", True)):
        part, everything = (
            mask & (hidden == is_hidden)[..., None] for mask, hidden in (own, whole)
        )
        count = everything.sum().clamp(min=1).to(values.device)
        found[name] = masked_mse(values, clean, part, count)
    return found
