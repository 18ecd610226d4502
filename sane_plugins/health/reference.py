"""Layers that are unlike their kind in a zoo.

The method: docs/explanation/sane.md, section 9.9.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from sane_plugins.errors import ZooError
from sane_plugins.health.findings import Finding, Severity, some
from sane_plugins.health.tensor_profile import Array, TensorProfile, profile_tensor
from sane_plugins.weights import Layer, Param, WeightGraph

LEAST_NETWORKS = 8
_MOST_BEYOND = 4.0  # times as far from the median as nine of ten of the zoo's
_USUAL = 0.9
_LEAST_REACH = 0.1  # of a feature, so that a zoo of equal layers allows for some difference
_TINY = 1e-24
_FEATURES = ("size", "mean", "tails", "spread of rows", "spread of columns", "sums of rows")

# A layer of the same name and shape, or else all of the same kind, role and number of axes.
_Place = tuple[str, str, tuple[int, ...] | int]


@dataclass(frozen=True)
class _Usual:
    """Median (F,) of a place's features, and how far from it nine of ten layers are at most (F,)."""

    centre: Array
    reach: Array

    @classmethod
    def of(cls, rows: Sequence[Array]) -> _Usual:
        """Describe the features (N, F) of layers."""
        table = np.stack(rows)
        centre = np.median(table, axis=0)
        reach = np.quantile(np.abs(table - centre), _USUAL, axis=0)
        return cls(centre, np.maximum(reach, _LEAST_REACH))

    def distance(self, row: Array) -> tuple[float, str]:
        """Return the largest distance of any feature, in reaches, and the feature."""
        away = np.abs(row - self.centre) / self.reach
        return float(away.max()), _FEATURES[int(away.argmax())]


@dataclass(frozen=True)
class Reference:
    """What the layers of a zoo's networks are like, by their places."""

    zoo: str
    places: Mapping[_Place, _Usual]

    def compare(
        self, graph: WeightGraph, profiles: Mapping[str, TensorProfile]
    ) -> Iterator[Finding]:
        """Yield the layers that are far from what the zoo has in their place.

        A layer of the zoo's own architecture is a fault; one that the zoo has another of is a note.
        """
        odd: dict[Severity, dict[str, tuple[str, float]]] = {"fault": {}, "note": {}}
        for layer, param in _tensors(graph, profiles):
            same, alike = _places(layer, param)
            severity: Severity = "fault" if same in self.places else "note"
            usual = self.places.get(same) or self.places.get(alike)
            if usual is None:
                continue
            away, feature = usual.distance(_features(profiles[param.key]))
            if away > _MOST_BEYOND:
                odd[severity][param.key] = feature, away
        for severity, found in odd.items():
            if not found:
                continue
            first, (feature, away) = next(iter(found.items()))
            text = (
                f"{some([*found])}: unlike what {self.zoo} has there (of {first}, the {feature} is"
                f" {away:.1f} times as far from the median as nine of ten are)"
            )
            yield Finding(kind="unlike_its_kind", severity=severity, text=text, places=tuple(found))


def fit_reference(zoo: str, graphs: Iterator[WeightGraph]) -> Reference:
    """Describe the layers of a zoo's networks. Raises `ZooError` for fewer than eight."""
    rows: dict[_Place, list[Array]] = {}
    networks: dict[_Place, set[int]] = {}
    count = 0
    for number, graph in enumerate(graphs):
        count += 1
        profiles = {
            p.key: profile_tensor(tensor, p).without_sample()
            for p, tensor in graph.items()
            if p.size
        }
        for layer, param in _tensors(graph, profiles):
            for place in _places(layer, param):
                rows.setdefault(place, []).append(_features(profiles[param.key]))
                networks.setdefault(place, set()).add(number)
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
            place: _Usual.of(found)
            for place, found in rows.items()
            if len(networks[place]) >= LEAST_NETWORKS
        },
    )


def _tensors(
    graph: WeightGraph, profiles: Mapping[str, TensorProfile]
) -> Iterator[tuple[Layer, Param]]:
    """Yield the matrices whose values can be used, with their layers."""
    for layer in graph.layers:
        for param in layer.params:
            profile = profiles.get(param.key)
            is_usable = profile is not None and not profile.unusable and min(profile.shape) > 1
            if is_usable and layer.kind != "parameter":
                yield layer, param


def _places(layer: Layer, param: Param) -> tuple[_Place, _Place]:
    return (param.key, param.role, param.shape), (layer.kind, param.role, len(param.shape))


def _features(x: TensorProfile) -> Array:
    """Return the features (6,) of a matrix: how large, how skewed, how uneven."""
    columns, power = x.shape[1], max(x.power, _TINY)
    return np.array(
        [
            log(columns * power) / 2,
            float(np.arcsinh(x.mean / max(x.variance, _TINY) ** 0.5)),
            log(max(x.fourth / power**2, 1.0)),
            _relative_spread(x.row_powers),
            _relative_spread(x.column_powers),
            log(max(float((x.row_sums**2).mean()) / (columns * power), _TINY)),
        ]
    )


def _relative_spread(powers: Array) -> float:
    mean = float(powers.mean())
    return float(np.log1p(powers.std() / mean)) if mean > _TINY else 0.0
