"""Survey of a network: what was read and how, with statistics of each tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Literal

from sane_plugins.display import ShortRepr
from sane_plugins.inspection.tensor_stats import ChannelStats, TensorStats, measure_tensor
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.symmetry import permutation_groups
from sane_plugins.weights import RUNNING, Layer, WeightGraph

_BIAS_ROLES = ("bias", "shift")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LayerStats(ShortRepr):
    """Statistics of a layer with tensors; `shared` names tensors already counted in an earlier layer.

    `kind` is the source's layer type; if that is unknown, `label` is inferred from the shapes.
    """

    name: str
    kind: str
    label: str
    tensors: tuple[TensorStats, ...]
    shared: tuple[str, ...] = ()

    @cached_property
    def parameters(self) -> int:
        """Return the number of values."""
        return sum(x.size for x in self.tensors)

    @cached_property
    def zeros(self) -> int:
        """Return how many values are exactly 0."""
        return sum(x.zeros for x in self.tensors)

    @cached_property
    def rms(self) -> float | None:
        """Return the root mean square of the weights, excluding biases and running statistics."""
        return _rms(x for x in self.tensors if x.role not in _BIAS_ROLES + RUNNING)

    @cached_property
    def bias_rms(self) -> float | None:
        """Return the root mean square of the biases, or None without biases."""
        return _rms(x for x in self.tensors if x.role in _BIAS_ROLES)


@dataclass(frozen=True, kw_only=True)
class Portion:
    """Tensors with a common reason, and their number of values (-1 if unknown)."""

    reason: str
    keys: tuple[str, ...]
    values: int = -1


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Survey(ShortRepr):
    """How a network was read, and statistics of its layers.

    `converted`: read, with values that differ from the stored ones. `missed`: possibly weights, but could not
    be read. `skipped`: not weights. `unconnected` names layers with weights but unknown inputs. `groups` is
    the number of permutation groups, `channels` the number of channels in them. The values are cut into
    `tokens` tokens of up to `token_width`.
    """

    source: str
    container: str
    layers: tuple[LayerStats, ...]
    converted: tuple[Portion, ...]
    missed: tuple[Portion, ...]
    skipped: tuple[Portion, ...]
    topology: Literal["known", "partly", "unknown"]
    unconnected: tuple[str, ...]
    groups: int
    channels: int
    tokens: int
    token_width: int
    ties: Mapping[str, str]
    notes: tuple[str, ...]
    recognized: tuple[str, ...] = ()

    @cached_property
    def tensors(self) -> tuple[TensorStats, ...]:
        """Return the statistics of every tensor that was read, without duplicates."""
        return tuple(x for layer in self.layers for x in layer.tensors)

    @cached_property
    def parameters(self) -> int:
        """Return the number of values that were read."""
        return sum(x.size for x in self.tensors)

    @cached_property
    def total(self) -> int:
        """Return the number of values that were read or missed."""
        return self.parameters + sum(x.values for x in self.missed)

    @cached_property
    def coverage(self) -> float:
        """Return the fraction of the source's parameters that was read."""
        return self.parameters / self.total

    @cached_property
    def dtypes(self) -> dict[str, int]:
        """Return the number of values by type."""
        return _sum_by_name((x.dtype, x.size) for x in self.tensors)

    @cached_property
    def zeros(self) -> int:
        """Return how many values are exactly 0."""
        return sum(x.zeros for x in self.tensors)

    @cached_property
    def nonfinite(self) -> int:
        """Return how many values are NaN or infinite."""
        return sum(x.nonfinite for x in self.tensors)

    @cached_property
    def structure(self) -> ChannelStats:
        """Return the channel statistics of all weight matrices."""
        return sum((x.channels for x in self.tensors), ChannelStats())


def survey_network(graph: WeightGraph, report: Report = silent, width: int = 128) -> Survey:
    """Compute statistics of every tensor, one tensor at a time; `width` is the token width.

    Raises `SourceError` if a tensor turns out to be unreadable.
    """
    layers = _layers(graph, report)
    infinite = [x.key for layer in layers for x in layer.tensors if x.nonfinite]
    if infinite and (finite := graph.without_masks(infinite)) is not graph:
        graph, layers = finite, _layers(finite, report)
    unconnected, groups = _unconnected(graph), permutation_groups(graph)
    skipped = {key: reason for key, reason in graph.untouched.items() if key not in graph.missed}
    missed = {
        key: graph.untouched.get(key, "in another network of the file") for key in graph.missed
    }
    sizes = {p.key: p.size for p in graph.params}
    return Survey(
        source=graph.source,
        container=graph.container,
        layers=layers,
        converted=_group_by_reason(graph.converted, sizes.__getitem__),
        missed=_group_by_reason(missed, graph.missed.__getitem__),
        skipped=_group_by_reason(skipped),
        topology="unknown" if not graph.has_topology else "partly" if unconnected else "known",
        unconnected=unconnected if graph.has_topology else (),
        groups=len(groups),
        channels=sum(group.size for group in groups),
        tokens=len(graph.token_layout(width)),
        token_width=width,
        ties=dict(graph.ties),
        notes=graph.notes,
        recognized=graph.recognized,
    )


def _layers(graph: WeightGraph, report: Report) -> tuple[LayerStats, ...]:
    seen: set[str] = set()
    layers, total = [], len(graph.params)
    for layer in graph.layers:
        fresh = [p for p in layer.params if p.key not in seen]
        measured = []
        for param in fresh:
            report(Progress(job="measure tensors", done=len(seen), total=total))
            converted = graph.converted.get(param.key, "")
            measured.append(measure_tensor(graph.tensors[param.key], param, layer, converted))
            seen.add(param.key)
        if layer.params:
            keys = {p.key for p in fresh}
            shared = tuple(p.key for p in layer.params if p.key not in keys)
            label = _label(layer)
            layers.append(
                LayerStats(
                    name=layer.name,
                    kind=layer.kind,
                    label=label,
                    tensors=tuple(measured),
                    shared=shared,
                )
            )
    return tuple(layers)


def _label(layer: Layer) -> str:
    """Return a layer's kind, inferred from its shapes if the source does not provide it."""
    if layer.kind != "unknown":
        return layer.kind.replace("_", " ")
    if any(p.role in RUNNING for p in layer.params):
        return "norm"
    axes = max(len(p.shape) for p in layer.params)
    return "vector" if axes < 2 else "matrix" if axes == 2 else "kernels"


def _unconnected(graph: WeightGraph) -> tuple[str, ...]:
    """Return layers with weights but unknown inputs; lone tensors have no inputs."""
    return tuple(
        layer.name
        for layer in graph.layers
        if layer.params and not layer.inputs and not layer.is_value
    )


def _group_by_reason(
    reasons: Mapping[str, str], size: Callable[[str], int] | None = None
) -> tuple[Portion, ...]:
    """Group keys by reason, in the order of first use."""
    grouped: dict[str, list[str]] = {}
    for key, reason in reasons.items():
        grouped.setdefault(reason, []).append(key)
    return tuple(
        Portion(reason=reason, keys=tuple(keys), values=sum(map(size, keys)) if size else -1)
        for reason, keys in grouped.items()
    )


def _rms(tensors: Iterable[TensorStats]) -> float | None:
    parts = [(x.size - x.nonfinite, x.power) for x in tensors]
    count = sum(size for size, _ in parts)
    return sqrt(sum(size * power for size, power in parts) / count) if count else None


def _sum_by_name(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for name, size in pairs:
        sums[name] = sums.get(name, 0) + size
    return sums


def percent(share: float) -> str:
    """Format a fraction as a percentage, as 0 or 100 only if exact."""
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    if share < 0.001:
        return "under 0.1 %"
    return "over 99.9 %" if share > 0.999 else f"{100 * share:.1f} %"
