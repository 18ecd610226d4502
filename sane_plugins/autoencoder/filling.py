"""Fill what a network leaves open: decode values that nobody gave in the context of those that are there.

The method: docs/explanation/sane.md, section 19.1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sane_plugins.autoencoder.codec import decode_tokens
from sane_plugins.autoencoder.halo_windows import cut_windows, join_windows
from sane_plugins.autoencoder.model import SANE
from sane_plugins.autoencoder.normalization import standardized_tokens
from sane_plugins.errors import UsageError
from sane_plugins.weights import (
    Scale,
    TokenLayout,
    WeightGraph,
    fit_scale,
    token_tensors,
    token_values,
    undo_scale,
)

_BATCH = 64  # windows


@torch.no_grad()
def fill(
    model: SANE,
    graph: WeightGraph,
    open_values: Mapping[str, torch.Tensor],
    *,
    window: int | None = None,
    halo: int | None = None,
) -> WeightGraph:
    """Return the network with its open values decoded; all others are as they were, bit for bit.

    `open_values` says of tensors, by key, which of their values are open: bool, of the tensor's shape. A
    token with an open value is hidden from the encoder. The scale of a tensor that is open as a whole is
    decoded too; of any other it is that of its given values. Raises `UsageError` for a SANE that has not
    learnt to fill.
    """
    if not model.config.fills or model.config.scale != "tensor":
        raise UsageError(
            "the SANE",
            "it has not learnt to decode tokens that it was not shown",
            "that is what filling does",
            "pretrain one with 'sane-plugins pretrain --hidden 0.5'",
        )
    window, halo = model.config.window_and_halo(window, halo)
    is_open = {key: mask.bool() for key, mask in open_values.items() if bool(mask.any())}
    if not is_open:
        return graph
    device = model.latents_out.weight.device
    layout = graph.token_layout(model.config.token_width)
    plain = graph.replace({key: _stand_in(graph.tensors[key], x) for key, x in is_open.items()})
    tokens, side = standardized_tokens(plain, model.config.token_width)
    hidden = _hidden_tokens(graph, is_open, model.config.token_width)
    positions = model.config.positions(layout, 0, len(layout))
    parts = [
        cut_windows(x, window, halo).split(_BATCH) for x in (tokens.values, side, positions, hidden)
    ]
    latents = torch.cat(
        [model.encode(*(x.to(device) for x in batch)) for batch in zip(*parts, strict=True)]
    )
    joined = join_windows(latents, len(layout), window, halo)
    values, decoded_side = decode_tokens(model, joined, layout, window, halo)
    scale = _scale(plain, layout, is_open, decoded_side.cpu())
    found = undo_scale(graph.replace(token_tensors(values.cpu(), layout)), scale)
    return graph.replace(
        {
            key: torch.where(
                mask.to(graph.tensors[key].device),
                found.tensors[key].to(graph.tensors[key]),
                graph.tensors[key],
            )
            for key, mask in is_open.items()
        }
    )


def _stand_in(tensor: torch.Tensor, is_open: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose open values are given ones in turn, so that its moments are theirs."""
    given = tensor[~is_open]
    if not len(given):
        return tensor
    filled = tensor.clone()
    count = int(is_open.sum())
    filled[is_open] = given.repeat(count // len(given) + 1)[:count]
    return filled


def _hidden_tokens(
    graph: WeightGraph, is_open: Mapping[str, torch.Tensor], width: int
) -> torch.Tensor:
    """Return which tokens (T,) hold an open value."""
    shown = {p.key: torch.zeros(p.shape, device="cpu") for p in graph.params}
    marked = graph.replace({**shown, **{key: x.float().cpu() for key, x in is_open.items()}})
    return token_values(marked, width, torch.float32).any(1)


def _scale(
    plain: WeightGraph,
    layout: TokenLayout,
    is_open: Mapping[str, torch.Tensor],
    side: torch.Tensor,
) -> Scale:
    """Return the scale of each slot: that of given values, or the decoded one where none is given."""
    given = fit_scale(plain)
    decoded = Scale.from_side(torch.stack([side[a:b].mean(0) for a, b in layout.spans]))
    whole = torch.zeros_like(given.mean, dtype=torch.bool)
    for i, slot in enumerate(layout.slots):
        for j, param in enumerate(slot.params):
            whole[i, j] = param.key in is_open and bool(is_open[param.key].all())
    return Scale(
        torch.where(whole, decoded.mean, given.mean),
        torch.where(whole, decoded.deviation, given.deviation),
    )
