"""A comparison as the record printed by `diff --json`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sane_plugins.comparison.difference import (
    LayerDifference,
    Network,
    NetworkComparison,
    TensorDifference,
)
from sane_plugins.comparison.presentation.phrases import summary_lines, verdict_line
from sane_plugins.comparison.verdict import Verdict
from sane_plugins.weights import Param


def comparison_record(comparison: NetworkComparison, verdict: Verdict) -> dict[str, Any]:
    """Return a comparison as a dict that JSON can hold."""
    return {
        "a": _network(comparison.a),
        "b": _network(comparison.b),
        "verdict": verdict.kind.value,
        "derived": verdict.derived or None,
        "text": [verdict_line(comparison, verdict), *summary_lines(comparison, verdict)],
        "shared": verdict.shared,
        "shares": dict(verdict.shares),
        "renamed": comparison.renamed,
        "retyped": comparison.retyped,
        "reordered": comparison.reordered,
        "other_values": list(comparison.other_values),
        "layers": [_layer(layer) for layer in comparison.layers],
    }


def _network(network: Network) -> dict[str, Any]:
    return {**asdict(network), "dtypes": list(network.dtypes)}


def _layer(layer: LayerDifference) -> dict[str, Any]:
    return {
        "a": layer.name_a or None,
        "b": layer.name_b or None,
        "kind": layer.kind,
        "change": layer.change,
        "values": layer.size,
        "folded_into": layer.folded_into or None,
        "tensors": [_tensor(x) for x in layer.tensors],
        "only_a": [_param(x) for x in layer.only_a],
        "only_b": [_param(x) for x in layer.only_b],
    }


def _tensor(difference: TensorDifference) -> dict[str, Any]:
    relation = difference.relation
    rank = relation.rank
    return {
        "a": _param(difference.a),
        "b": _param(difference.b),
        "change": difference.change,
        "exact": relation.is_exact,
        "derived": relation.derived or None,
        "distance": relation.distance,
        "cosine": relation.cosine,
        "correlation": relation.correlation,
        "scaling": relation.scaling or None,
        "permuted": difference.permuted,
        "transposed": difference.is_turned,
        "channels": list(difference.channels) or None,
        "precision": relation.precision or None,
        "pruned": relation.pruned,
        "kept_distance": relation.kept_distance,
        "bits": relation.bits or None,
        "unit": relation.unit or None,
        "error_steps": relation.error_steps if relation.bits else None,
        "nonfinite": relation.nonfinite,
        "rank": rank and asdict(rank),
    }


def _param(param: Param) -> dict[str, Any]:
    return {
        "name": param.key,
        "role": param.role,
        "shape": list(param.shape),
        "dtype": str(param.dtype).removeprefix("torch."),
    }
