"""Layers that are unlike their kind in a zoo.

The method: docs/explanation/sane.md, section 17.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from sane_plugins.errors import ZooError
from sane_plugins.health.findings import Finding, some
from sane_plugins.health.tensor_profile import Array, TensorProfile, profile_tensor
from sane_plugins.weights import Layer, Param, WeightGraph

LEAST_NETWORKS = 8
_MOST_BEYOND = 3.0  # times what nine of ten networks of the zoo stay below
_USUAL = 0.9
_LEAST_SPREAD = 0.05  # of a feature, so that equal layers of a small zoo are no measure
_TO_DEVIATION = 1.4826  # of the median absolute deviation of a normal variable
_TINY = 1e-12
_NAMES = ("size", "mean", "tails", "spread of rows", "spread of columns", "sums of rows")

# A layer of the same name and shape, or else all of the same kind, role and number of axes.
_Place = tuple[str, str, tuple[int, ...] | int]


@dataclass(frozen=True)
class _Norms:
    """Median and spread (F,) of a place's features, and the distance that nine of ten networks stay below."""

    centre: Array
    spread: Array
    usual: float

    @classmethod
    def of(cls, rows: Sequence[Array], networks: Sequence[int]) -> _Norms:
        """Describe features (N, F) of layers, each of one of the networks (N,)."""
        table = np.stack(rows)
        centre = np.median(table, axis=0)
        spread = _TO_DEVIATION * np.median(np.abs(table - centre), axis=0)
        norms = cls(centre, np.maximum(spread, _LEAST_SPREAD), 0.0)
        largest: dict[int, float] = {}
        for row, network in zip(rows, networks, strict=True):
            largest[network] = max(largest.get(network, 0.0), norms.distance(row)[0])
        return cls(norms.centre, norms.spread, float(np.quantile([*largest.values()], _USUAL)))

    def distance(self, row: Array) -> tuple[float, str]:
        """Return the largest distance of any feature, in spreads, and the feature."""
        away = np.abs(row - self.centre) / self.spread
        return float(away.max()), _NAMES[int(away.argmax())]


@dataclass(frozen=True)
class Reference:
    """What the layers of a zoo's networks are like, by their places."""

    zoo: str
    places: Mapping[_Place, _Norms]

    def compare(
        self, graph: WeightGraph, profiles: Mapping[str, TensorProfile]
    ) -> Iterator[Finding]:
        """Yield the layers that are far from all that the zoo has in their place."""
        odd: dict[str, str] = {}
        for layer, param in _tensors(graph, profiles):
            norms = next((self.places[x] for x in _places(layer, param) if x in self.places), None)
            if norms is None:
                continue
            away, feature = norms.distance(_features(profiles[param.key], param))
            if away > _MOST_BEYOND * max(norms.usual, 1.0):
                odd[param.key] = f"{feature}, {away / max(norms.usual, 1.0):.0f} times beyond the usual"
        if odd:
            first = next(iter(odd))
            yield Finding(
                kind="unlike_its_kind",
                severity="fault",
                text=f"{some([*odd])}: unlike {self.zoo} has there ({first}: {odd[first]})",
                places=tuple(odd),
            )


def fit_reference(zoo: str, graphs: Iterator[WeightGraph]) -> Reference:
    """Describe the layers of a zoo's networks. Raises `ZooError` for fewer than eight."""
    rows: dict[_Place, list[Array]] = {}
    networks: dict[_Place, list[int]] = {}
    count = 0
    for number, graph in enumerate(graphs):
        count += 1
        profiles = {
            p.key: profile_tensor(tensor, p).without_sample() for p, tensor in graph.items() if p.size
        }
        for layer, param in _tensors(graph, profiles):
            features = _features(profiles[param.key], param)
            for place in _places(layer, param):
                rows.setdefault(place, []).append(features)
                networks.setdefault(place, []).append(number)
    if count < LEAST_NETWORKS:
        raise ZooError(
            zoo,
            f"it has {count} networks",
            f"at least {LEAST_NETWORKS} tell what is usual",
            "name a larger zoo",
        )
    return Reference(
        zoo,
        {
            place: _Norms.of(found, networks[place])
            for place, found in rows.items()
            if len({*networks[place]}) >= LEAST_NETWORKS
        },
    )


def _tensors(
    graph: WeightGraph, profiles: Mapping[str, TensorProfile]
) -> Iterator[tuple[Layer, Param]]:
    """Yield the tensors whose values are usable and not all the same, with their layers."""
    for layer in graph.layers:
        for param in layer.params:
            profile = profiles.get(param.key)
            if profile is not None and not profile.unusable and layer.kind != "parameter":
                yield layer, param


def _places(layer: Layer, param: Param) -> tuple[_Place, _Place]:
    return (param.key, param.role, param.shape), (layer.kind, param.role, len(param.shape))


def _features(x: TensorProfile, param: Param) -> Array:
    """Return the features (6,) of a tensor: how large, how skewed, how uneven."""
    deviation = max(x.variance**0.5, _TINY)
    columns = x.shape[1] if len(param.shape) > 1 else 1
    rows, inputs = _relative_spread(x.row_powers), _relative_spread(x.column_powers)
    sums = float((x.row_sums**2).sum()) / max(x.shape[1] * x.power * x.size / x.shape[1], _TINY)
    return np.array(
        [
            log(max((x.power * columns) ** 0.5, _TINY)),
            float(np.arcsinh(x.mean / deviation)),
            log(max(x.fourth / max(x.power, _TINY) ** 2, _TINY)),
            rows,
            inputs if len(param.shape) > 1 else 0.0,
            log(max(sums, _TINY)),
        ]
    )


def _relative_spread(powers: Array) -> float:
    mean = float(powers.mean())
    return float(np.log1p(powers.std() / mean)) if mean > _TINY else 0.0

