"""Compare two networks: pair their tensors, bring channels into one order, say what became of each.

The method: docs/explanation/sane.md, section 21.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sane_plugins.comparison.difference import Network, NetworkComparison, TensorDifference
from sane_plugins.comparison.layer_differences import layer_differences
from sane_plugins.comparison.paired_tensors import pair_tensors
from sane_plugins.comparison.tensor_differences import difference_as_stored, with_aligned_channels
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.weights import WeightGraph


def compare(a: WeightGraph, b: WeightGraph, report: Report = silent) -> NetworkComparison:
    """Return how two networks differ, layer by layer; tensors are read one pair at a time.

    Raises `SourceError` if a tensor turns out to be unreadable.
    """
    pairs = pair_tensors(a, b, report)
    differences: list[TensorDifference] = []
    for pair in pairs:
        report(Progress(job="compare", done=len(differences), total=len(pairs)))
        differences.append(difference_as_stored(a, b, pair))
    differences = with_aligned_channels(a, b, differences)
    layers = layer_differences(a, b, differences)
    keys_a, keys_b = ([p.key for p in graph.params] for graph in (a, b))
    return NetworkComparison(
        a=_network(a),
        b=_network(b),
        layers=layers,
        renamed=sum(x.a.key != x.b.key for x in differences),
        retyped=sum(x.a.dtype != x.b.dtype for x in differences),
        reordered=sorted(keys_a) == sorted(keys_b) and keys_a != keys_b,
        other_values=tuple(_other_values(a, b)),
    )


def _network(graph: WeightGraph) -> Network:
    return Network(
        source=graph.source,
        container=graph.container,
        parameters=graph.size,
        tensors=len(graph.params),
        dtypes=tuple(dict.fromkeys(str(p.dtype).removeprefix("torch.") for p in graph.params)),
        missed=sum(graph.missed.values()),
    )


def _other_values(a: WeightGraph, b: WeightGraph) -> Iterator[str]:
    """Yield the tensors that are no weights and differ; of one container, those in one network only too."""
    is_one_container = a.container == b.container
    for key in dict.fromkeys([*a.untouched, *b.untouched]):
        one, other = a.tensors.get(key), b.tensors.get(key)
        if one is None or other is None:
            if is_one_container and (one is None) != (other is None):
                yield key
        elif not torch.equal(one.cpu(), other.cpu()):
            yield key
