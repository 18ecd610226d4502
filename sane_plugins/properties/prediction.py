"""Predict properties of a network from its weights alone (docs/explanation/sane.md, section 9)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from sane_plugins.arguments import require_field_types
from sane_plugins.autoencoder import SANE, fingerprint
from sane_plugins.errors import UsageError, ZooError
from sane_plugins.features import (
    ENCODERS,
    EncodeOptions,
    Encoder,
    SaneEncoder,
    load_model,
    structure,
)
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.properties.dataset import STRUCTURE, FeatureDataset
from sane_plugins.properties.estimates import AnyEstimate, Estimate
from sane_plugins.properties.head_file import AnyHead, load_heads
from sane_plugins.properties.regressors import Array
from sane_plugins.weights import WeightGraph


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Properties to predict (if None, all that have heads), and the SANE, heads and device to use.

    `heads` is a file written by 'sane-plugins heads fit'; if None, the heads of plugins are used.
    """

    properties: tuple[str, ...] | None = None
    sane: Path | None = None
    heads: Path | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        require_field_types(self)


def predict(
    graph: WeightGraph,
    heads: Mapping[str, AnyHead] | None = None,
    sane: SANE | None = None,
    options: PredictOptions | None = None,
    report: Report = silent,
) -> dict[str, AnyEstimate]:
    """Predict properties of one network; heads and SANE default to the embedded ones.

    Raises `SourceError` if a weight is not finite, `UsageError` for a property without a head, and
    `ZooError` if a head was fitted on another SANE's features.
    """
    options = options or PredictOptions()
    graph.require_finite()
    if options.heads is not None:
        heads = load_heads(options.heads)
    chosen = _select_heads(embedded_heads() if heads is None else heads, options.properties)
    needed = {name for head in chosen.values() for name in head.encoders}
    encode = EncodeOptions(sane=options.sane, device=options.device, report=report)
    encoders = dict(ENCODERS)
    if "sane" in needed:
        model = load_model(encode) if sane is None else sane
        _require_same_sane(chosen, model, options.heads)
        encoders["sane"] = SaneEncoder(model)
    features = {name: encoders[name].features(graph, encode).numpy() for name in needed}
    for name, head in chosen.items():
        _require_same_features(options.heads or f"property '{name}'", name, head, features)
    features[STRUCTURE] = structure(graph)
    estimates = {name: head.estimate(features) for name, head in chosen.items()}
    for name, estimate in estimates.items():
        _require_number(options.heads or f"property '{name}'", name, estimate)
    return estimates


def extract_features(
    graphs: Sequence[WeightGraph] | Iterable[WeightGraph],
    networks: Sequence[str],
    encoders: Mapping[str, Encoder],
    report: Report = silent,
) -> FeatureDataset:
    """Extract the features of many networks as a dataset for `fit_head`."""
    rows: dict[str, list[Array]] = {name: [] for name in (*encoders, STRUCTURE)}
    options = EncodeOptions(report=report)
    for i, graph in enumerate(graphs):
        report(Progress(job="features", done=i, total=len(networks), note=graph.source))
        for name, encoder in encoders.items():
            rows[name].append(encoder.features(graph, options).numpy())
        rows[STRUCTURE].append(structure(graph))
    return FeatureDataset(
        features={name: np.stack(x) for name, x in rows.items()}, networks=networks
    )


@lru_cache(maxsize=1)
def embedded_heads() -> Mapping[str, AnyHead]:
    """Return the heads that ship with the package, by property."""
    with as_file(files("sane_plugins") / "data" / "heads.safetensors") as path:
        return load_heads(path)


def _select_heads(
    heads: Mapping[str, AnyHead], properties: tuple[str, ...] | None
) -> dict[str, AnyHead]:
    for name in properties or ():
        if name not in heads:
            raise UsageError(
                f"property '{name}'",
                "no head predicts it",
                f"one of {', '.join(sorted(heads))} is needed",
                "check the name, or install its plugin",
            )
    return {name: heads[name] for name in properties or heads}


def _require_same_features(
    place: object, name: str, head: AnyHead, features: Mapping[str, Array]
) -> None:
    """Raise `ZooError` unless a head reads as many features as the encoders give."""
    given = sum(len(features[encoder]) for encoder in head.encoders)
    if given != len(head.support.centre):
        raise ZooError(
            place,
            f"the head of '{name}' reads {len(head.support.centre)} features",
            f"its encoders give {given}",
            "fit it again with 'sane-plugins heads fit'",
        )


def _require_number(place: object, name: str, estimate: AnyEstimate) -> None:
    """Raise `ZooError` for an estimate that is no number, or whose bounds are none."""
    if isinstance(estimate, Estimate):
        is_number = np.isfinite(estimate.value) and not np.isnan(estimate.interval).any()
    else:
        is_number = np.isfinite([*estimate.probabilities.values()]).all()
    if not is_number:
        raise ZooError(
            place,
            f"the head of '{name}' gives no number for this network",
            "an estimate is finite",
            "fit it again with 'sane-plugins heads fit'",
        )


def _require_same_sane(heads: Mapping[str, AnyHead], model: SANE, file: Path | None) -> None:
    model_fingerprint = fingerprint(model)
    for name, head in heads.items():
        if head.sane and head.sane != model_fingerprint:
            raise ZooError(
                file or f"property '{name}'",
                f"the head of '{name}' reads features of SANE {head.sane}",
                f"this SANE is {model_fingerprint}",
                "use the SANE it was fitted with, or fit the head again",
            )
