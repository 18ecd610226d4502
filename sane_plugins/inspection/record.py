"""A survey as the JSON record printed by `inspect --json`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sane_plugins.inspection.survey import LayerStats, Survey


def survey_record(survey: Survey) -> dict[str, Any]:
    """Convert a survey to a JSON-serialisable dict."""
    zeros = survey.zeros / max(survey.parameters, 1)
    return {
        "source": survey.source,
        "container": survey.container,
        "parameters": survey.parameters,
        "coverage": survey.coverage,
        "dtypes": survey.dtypes,
        "layers": [_layer(layer, survey) for layer in survey.layers],
        "converted": [asdict(x) for x in survey.converted],
        "missed": [asdict(x) for x in survey.missed],
        "skipped": [{"reason": x.reason, "keys": x.keys} for x in survey.skipped],
        "sparsity": {"zeros": survey.zeros, "share": zeros, **asdict(survey.structure)},
        "not_finite": survey.nonfinite,
        "recognized": list(survey.recognized),
        "topology": survey.topology != "unknown",
        "unconnected": survey.unconnected,
        "permutation_groups": survey.groups,
        "permutable_channels": survey.channels,
        "tokens": survey.tokens,
        "token_width": survey.token_width,
        "untouched": {key: x.reason for x in (*survey.missed, *survey.skipped) for key in x.keys},
        "ties": dict(survey.ties),
        "notes": list(survey.notes),
    }


def _layer(layer: LayerStats, survey: Survey) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "parameters": layer.parameters,
        "share": layer.parameters / survey.total,
        "rms": layer.rms,
        "bias_rms": layer.bias_rms,
        "zeros": layer.zeros,
        "shared": layer.shared,
        "tensors": [
            {
                "key": x.key,
                "role": x.role,
                "shape": x.shape,
                "dtype": x.dtype,
                "rms": x.rms,
                "zeros": x.zeros,
                "not_finite": x.nonfinite,
                "converted": x.converted or None,
                **asdict(x.channels),
            }
            for x in layer.tensors
        ],
    }
