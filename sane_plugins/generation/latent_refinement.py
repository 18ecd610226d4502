"""Refine a network in the latent space of a SANE: a few steps on latents, through the frozen decoder.

The method: docs/explanation/sane.md, section 19.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, layer_norm

from sane_plugins.arguments import require_field_types, require_ranges
from sane_plugins.autoencoder import SANE, decode_tokens, encode
from sane_plugins.errors import TaskError, UsageError
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.weights import (
    RUNNING,
    Scale,
    TokenLayout,
    WeightGraph,
    from_module,
    load_into,
    token_tensors,
    undo_scale,
)


@dataclass(frozen=True, kw_only=True)
class RefineOptions:
    """How many steps of Adam are taken on latents, at which rate, on how many images each.

    An `is_anchored` network takes on only what steps change of what is decoded, so that it begins as it is;
    else it begins as its reconstruction.
    """

    steps: int = 20
    lr: float = 3e-3
    batch: int = 128
    is_anchored: bool = True

    def __post_init__(self) -> None:
        require_field_types(self)
        require_ranges(self, {"steps": (0, 10_000), "lr": (0.0, 100.0), "batch": (1, 2**20)})


def refine(
    module: nn.Module,
    sane: SANE,
    images: torch.Tensor,
    labels: torch.Tensor,
    options: RefineOptions,
    rng: torch.Generator,
    report: Report = silent,
) -> list[float]:
    """Refine a module in place on labelled images (N, C, H, W); return the loss of each step's batch.

    Running statistics are the module's own, and to be measured anew afterwards. Norms read the batch.
    Raises `UsageError` for a SANE that does not encode scales, and `TaskError` where a loss is not finite;
    the module is unchanged then.
    """
    require_refining(sane)
    graph = from_module(module)
    decoder = _Decoder(sane, graph, options.is_anchored)
    latents = decoder.start.clone().requires_grad_(True)
    optimizer, losses = torch.optim.Adam([latents], lr=options.lr), list[float]()
    was_training = module.training
    module.train()
    for done in range(1, options.steps + 1):
        rows = torch.randint(len(labels), (options.batch,), generator=rng).to(images.device)
        buffers = {key: x.clone() for key, x in module.named_buffers()}  # the batch moves them
        logits = functional_call(module, {**buffers, **decoder(latents)}, (images[rows],))
        loss = cross_entropy(logits.float(), labels[rows])
        losses.append(loss.item())
        if not isfinite(losses[-1]):
            module.train(was_training)
            raise TaskError(
                "refinement",
                f"the loss of step {len(losses)} is not finite",
                "its steps need finite ones",
                "choose a lower rate",
            )
        (latents.grad,) = torch.autograd.grad(loss, [latents])
        optimizer.step()
        if sane.config.is_normed:
            with torch.no_grad():  # latents stay where those of networks lie
                latents.copy_(layer_norm(latents, latents.shape[-1:]))
        report(Progress(job="refine", done=done, total=options.steps, note=f"{losses[-1]:.3f}"))
    module.train(was_training)
    with torch.no_grad():
        load_into(module, graph.replace(decoder(latents)))
    return losses


def require_refining(sane: SANE) -> None:
    """Raise `UsageError` for a SANE whose latents do not tell each tensor's own scale."""
    if sane.config.scale != "tensor":
        raise UsageError(
            "the SANE",
            f"its scale is that of '{sane.config.scale}'",
            "latents must tell each tensor's own scale",
            "pretrain one with the default preset",
        )


class _Decoder:
    """Decodes latents (T, L) into the learnt tensors of a network, through which gradients flow."""

    def __init__(self, sane: SANE, graph: WeightGraph, is_anchored: bool) -> None:
        self._sane, self._graph = sane, graph
        self._layout: TokenLayout = graph.token_layout(sane.config.token_width)
        self._learnt = [param.key for param in graph.params if param.role not in RUNNING]
        with torch.no_grad():
            self.start = encode(sane, graph).values
            decoded = self._decode(self.start)
        self._offset: Mapping[str, torch.Tensor] = {
            key: graph.tensors[key] - decoded[key]
            if is_anchored
            else torch.zeros_like(decoded[key])
            for key in self._learnt
        }

    def __call__(self, latents: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the tensors by key."""
        decoded = self._decode(latents)
        return {key: decoded[key] + self._offset[key] for key in self._learnt}

    def _decode(self, latents: torch.Tensor) -> dict[str, torch.Tensor]:
        window, halo = self._sane.config.window_and_halo(None, None)
        values, side = decode_tokens(self._sane, latents, self._layout, window, halo)
        slot_side = torch.stack([side[a:b].mean(0) for a, b in self._layout.spans])
        network = self._graph.replace(token_tensors(values, self._layout))
        found = undo_scale(network, Scale.from_side(slot_side))
        return {key: found.tensors[key].to(self._graph.tensors[key].device) for key in self._learnt}
