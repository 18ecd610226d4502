"""Zoos in memory as aligned tokens, with permutations that generate views.

The method: docs/explanation/sane.md, sections 4.1, 4.2 and 4.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch

from sane_plugins.architectures import NO_TRUST, Trust
from sane_plugins.autoencoder import SANEConfig, standardized_tokens
from sane_plugins.display import ShortRepr
from sane_plugins.errors import UsageError
from sane_plugins.progress import Progress, Report
from sane_plugins.symmetry import (
    PermutationGroup,
    alignment,
    canonical_form,
    permutation_groups,
    permute,
    random_permutations,
)
from sane_plugins.weights import TokenLayout, WeightGraph, fit_scale, token_tensors, token_values
from sane_plugins.zoo import Entry, Zoo

_MAX_PERMUTATIONS = 512  # per architecture
_MAX_INDICES = 2**26  # over all permutations of an architecture: 256 MiB
_MAX_EXACT = 2**24  # single precision tells whole numbers apart up to this


@dataclass(frozen=True, eq=False, repr=False)  # compared by identity, as it is a cache key
class PermutedDataset(ShortRepr):
    """All samples of one architecture from one zoo: N networks of T tokens, with V permuted views each.

    values (N, T, D) of the aligned networks, as encoded; permutations (R, T * D) map each value of a
    permuted network to its index in the aligned one, with the identity in row 0; mask (T, D);
    positions (T, P); side (N, T, 4), which is permutation-invariant. `zoo_scale` (M, 2) is the zoo-wise
    scale, if it was divided out. `entries` are the N networks, `template` has their shapes, and `zoo` is
    the zoo's name. `trust` says which functions may be called to build them.
    """

    values: torch.Tensor
    permutations: torch.Tensor
    views: int
    mask: torch.Tensor
    positions: torch.Tensor
    side: torch.Tensor
    zoo_scale: torch.Tensor
    entries: tuple[Entry, ...]
    template: WeightGraph
    zoo: str
    trust: Trust = NO_TRUST

    def to(self, device: str | torch.device) -> PermutedDataset:
        """Return the data set with all that batches are cut from on a device."""
        names = ("values", "permutations", "mask", "positions", "side")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    @property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Return the names and shapes of its networks' tensors: their architecture."""
        return _shapes(self.template)

    def all_tokens(self, network: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
        """Return all tokens (B, T, D) for network and view indices, both (B,)."""
        return self.tokens_at(network, view, torch.arange(len(self.mask)).expand(len(network), -1))

    def tokens_at(
        self, network: torch.Tensor, view: torch.Tensor, at: torch.Tensor
    ) -> torch.Tensor:
        """Return the tokens (B, S, D) at indices `at` (B, S) for network and view indices (B,) of any device.

        View 0 is the aligned network. Networks share permutations, but the V views of a network differ.
        """
        network, view, at = (x.to(self.values.device) for x in (network, view, at))
        permuted_rows = max(len(self.permutations) - 1, 1)
        row = torch.where(view == 0, 0, 1 + (network * self.views + view - 1) % permuted_rows)
        tokens, width = self.mask.shape
        index = self.permutations.view(-1, tokens, width)[row[:, None], at].long()
        return self.values.view(-1)[index + network[:, None, None] * (tokens * width)]


def build_datasets(
    zoos: Sequence[Zoo],
    config: SANEConfig,
    views: int,
    rng: torch.Generator,
    report: Report,
    *,
    aligned: bool = True,
    canonical: bool = False,
) -> list[PermutedDataset]:
    """Align every network to the best of its architecture, tokenise it, and draw permutations for its views.

    All checkpoints of a training run share the permutation of its last one. With `canonical` each network is
    in its canonical form instead, as networks are that are embedded. Networks with NaN or infinite values
    are left out, which is reported.
    """
    groups, dropped = _group_by_architecture(zoos, canonical)
    aligned = aligned and not canonical
    if config.scale == "zoo" and len(groups) > 1:
        raise UsageError(
            "the zoos",
            f"they hold {len(groups)} architectures",
            "a zoo-wise scale is that of one",
            "choose networks of one architecture, or the default preset",
        )
    total = sum(map(len, groups))
    note = f"{dropped} networks with values that are not finite left out" if dropped else ""
    datasets: list[PermutedDataset] = []
    for samples in groups:
        datasets += _build_architecture_datasets(samples, config, views, rng, aligned)
        done = sum(len(dataset.values) for dataset in datasets)
        report(Progress(job="align and cut", done=done, total=total, note=note))
    return datasets


@dataclass(frozen=True)
class _Sample:
    """One checkpoint of a zoo."""

    zoo: Zoo
    entry: Entry
    graph: WeightGraph


def _group_by_architecture(zoos: Sequence[Zoo], canonical: bool) -> tuple[list[list[_Sample]], int]:
    """Group samples by architecture, ordered by run; also return how many were left out."""
    by_shapes: dict[tuple[tuple[str, tuple[int, ...]], ...], list[_Sample]] = {}
    dropped = 0
    for zoo in zoos:
        for entry in sorted(zoo.entries, key=lambda entry: entry.network):
            graph = zoo.graph(entry)
            if graph.is_finite:
                graph = _in_canonical_form(graph) if canonical else graph
                by_shapes.setdefault(_shapes(graph), []).append(_Sample(zoo, entry, graph))
            else:
                dropped += 1
    return list(by_shapes.values()), dropped


def _in_canonical_form(graph: WeightGraph) -> WeightGraph:
    ordered = canonical_form(graph)  # whose tensors are permuted each time they are read
    return ordered.replace({param.key: tensor for param, tensor in ordered.items()})


def _shapes(graph: WeightGraph) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((param.key, param.shape) for param in graph.params)


def _build_architecture_datasets(
    samples: list[_Sample], config: SANEConfig, views: int, rng: torch.Generator, aligned: bool
) -> Iterator[PermutedDataset]:
    """Yield one dataset per zoo for one architecture; all share reference, permutations and positions."""
    template = samples[0].graph
    groups = permutation_groups(template)
    graphs = _align(samples, groups, rng) if aligned else (s.graph for s in samples)
    parts = [_tokens(graph, config) for graph in graphs]
    values, side = (torch.stack(part) for part in zip(*parts, strict=True))
    layout = template.token_layout(config.token_width)
    mask = layout.mask()
    zoo_scale = torch.zeros(0, 2)
    if config.scale == "zoo":
        values, zoo_scale = _standardize_per_slot(values, mask, layout)
    count = min(len(samples) * views, _MAX_PERMUTATIONS, max(views, _MAX_INDICES // mask.numel()))
    permutations = _permutation_indices(template, groups, layout, count, rng)
    positions = config.positions(layout, 0, len(layout))
    start = 0
    for _, zoo_samples in groupby(samples, key=lambda sample: id(sample.zoo)):
        members = list(zoo_samples)
        rows = slice(start, start + len(members))
        start = rows.stop
        yield PermutedDataset(
            values[rows],
            permutations,
            views,
            mask,
            positions,
            side[rows],
            zoo_scale,
            tuple(sample.entry for sample in members),
            template,
            members[0].zoo.name,
            members[0].zoo.trust,
        )


def _align(
    samples: list[_Sample], groups: Sequence[PermutationGroup], rng: torch.Generator
) -> Iterator[WeightGraph]:
    """Align each run to the best network: permute all its checkpoints as its last one is aligned."""
    reference = max(samples, key=lambda s: float(s.entry.properties.get("test_accuracy", 0.0)))
    for _, run in groupby(samples, key=lambda s: (id(s.zoo), s.entry.network)):
        checkpoints = list(run)
        permutations = alignment(checkpoints[-1].graph, reference.graph, rng, groups)
        yield from (permute(sample.graph, permutations, groups) for sample in checkpoints)


def _tokens(graph: WeightGraph, config: SANEConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values (T, D) and side (T, 4); values are raw unless the scale is per tensor."""
    if config.scale == "tensor":
        tokens, side = standardized_tokens(graph, config.token_width)
        return tokens.values, side
    slot = graph.token_layout(config.token_width).positions()[:, 1]
    return token_values(graph, config.token_width, torch.float32), fit_scale(graph).side[slot]


def _standardize_per_slot(
    values: torch.Tensor, mask: torch.Tensor, layout: TokenLayout
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values (N, T, D) standardised per slot over all N networks, and that scale (M, 2)."""
    moments = []
    for start, stop in layout.spans:
        real = values[:, start:stop][:, mask[start:stop]].double()
        moments.append(torch.stack([real.mean(), real.std(correction=0).clamp(min=1e-12)]))
    zoo_scale = torch.stack(moments).float()
    mean, deviation = zoo_scale[layout.slot_numbers()].unbind(1)
    return (values - mean[:, None]) / deviation[:, None] * mask, zoo_scale


def _permutation_indices(
    template: WeightGraph,
    groups: Sequence[PermutationGroup],
    layout: TokenLayout,
    count: int,
    rng: torch.Generator,
) -> torch.Tensor:
    """Return indices (1 + count, T * D) of each value of a permuted network in the aligned one.

    Row 0 is the identity; the others come from permuting a network whose values are their own indices.
    """
    enumerated, real = template.replace(token_indices(layout)), layout.mask().flatten()
    permutations = torch.arange(real.numel(), dtype=torch.int32).repeat(1 + count, 1)
    for row in permutations[1:]:
        drawn = permute(enumerated, random_permutations(groups, rng), groups)
        row[real] = token_values(drawn, layout.width, torch.int32).flatten()[real]
    return permutations


def token_indices(layout: TokenLayout) -> dict[str, torch.Tensor]:
    """Return, by tensor key, the indices (int32, tensor's shape) of its values in the flat tokens."""
    indices = torch.arange(len(layout) * layout.width, dtype=torch.int32)
    return token_tensors(indices.view(-1, layout.width), layout, torch.int32)
