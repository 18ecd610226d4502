"""What each layer of a network is fitted to, by its partner in a trained network.

The method: docs/explanation/sane.md, section 16.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from sane_plugins.grafting.channel_maps import ChannelMaps
from sane_plugins.grafting.connections import Activation
from sane_plugins.grafting.fitting.residual_sum import ResidualSum
from sane_plugins.grafting.fitting.source_features import PreparedNetwork
from sane_plugins.grafting.matching import Matching
from sane_plugins.grafting.units import Unit


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerFit:
    """What a layer of the target is fitted to: a layer of the source, each behind its norm, if any.

    Output c takes `signs[c]` times the source's channel `channels[c]`, both (O,). `activation` is applied
    to it where the source has one behind the layer, and the target none, or a vector where that has maps.
    """

    layer: str
    source: str
    channels: torch.Tensor
    signs: torch.Tensor
    activation: Activation | None = None


def layer_fits(
    matching: Matching, maps: ChannelMaps, source: PreparedNetwork, target: PreparedNetwork
) -> list[LayerFit]:
    """Return what the target's layers with a partner are fitted to; not the classifier.

    Where the target bends values that the source does not, a second copy of a channel takes its negative:
    together they keep what a rectifier would drop.
    """
    theirs, ours = ({x.layer: x for x in side.sums} for side in (source, target))
    fits = []
    for pair in matching.pairs.values():
        if pair.target.place == "classifier":
            continue
        channels = maps.outputs(pair)
        before, after = _activation(pair.source, theirs), _activation(pair.target, ours)
        is_pooled = bool(pair.source.grid) and not pair.target.grid
        rectifies_anew = before is None and after is not None and _rectifies(after)
        signs = torch.where(_copy(channels) % 2 == 1, -1.0, 1.0) if rectifies_anew else None
        fits.append(
            LayerFit(
                layer=pair.target.name,
                source=pair.source.name,
                channels=channels,
                signs=torch.ones(len(channels)) if signs is None else signs,
                activation=before if after is None or is_pooled else None,
            )
        )
    return fits


def _activation(unit: Unit, sums: Mapping[str, ResidualSum]) -> Activation | None:
    return sums[unit.name].activation if unit.name in sums else unit.activation


def _copy(channels: torch.Tensor) -> torch.Tensor:
    """Return how many times each channel occurs before its place."""
    same = channels[:, None] == channels[None]
    return same.tril(-1).sum(1)


def _rectifies(activation: Activation) -> bool:
    """Return whether hardly anything is left of negative values."""
    low, high = activation(torch.tensor([-3.0, 3.0])).tolist()
    return bool(abs(low) < 0.2 * abs(high))
