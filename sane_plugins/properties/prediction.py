"""Predict properties of a network from its weights alone (docs/explanation/sane.md, section 9)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib.resources import as_file, files
from pathlib import Path
from types import MappingProxyType

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
from sane_plugins.formats import initial_weights
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.properties.dataset import STRUCTURE, FeatureDataset
from sane_plugins.properties.estimates import AnyEstimate, Estimate
from sane_plugins.properties.heads.head import Head
from sane_plugins.properties.heads.head_file import AnyHead, load_heads
from sane_plugins.properties.heads.kinds_head import RANKER_FEATURES, KindsHead
from sane_plugins.properties.regressors import Array, Trees
from sane_plugins.weights import WeightGraph

Attempt = Callable[[AnyHead, Callable[[], AnyEstimate]], AnyEstimate | None]


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Properties to predict (if None, all that have heads), and the SANE, heads and device to use.

    `heads` is a file written by 'sane-plugins heads fit'; if None, the heads of plugins are used. `like`
    names the zoo, of those that heads were fitted on, whose networks are like those to be predicted.
    """

    properties: tuple[str, ...] | None = None
    sane: Path | None = None
    heads: Path | None = None
    device: str = "cpu"
    like: str | None = None

    def __post_init__(self) -> None:
        require_field_types(self)


def predict(
    graph: WeightGraph,
    heads: Mapping[str, AnyHead] | None = None,
    sane: SANE | None = None,
    options: PredictOptions | None = None,
    report: Report = silent,
    attempt: Attempt | None = None,
    encoders: Mapping[str, Encoder] | None = None,
) -> dict[str, AnyEstimate]:
    """Predict properties of one network; heads and SANE default to the embedded ones.

    `attempt` makes the estimate of one head of a plugin; where it returns None, the head is left out.
    `encoders` are those beside the built-in ones whose features heads may read. Raises
    `SourceError` if a weight is not finite, `UsageError` for a property without a head, and `ZooError` if a
    head was fitted on another SANE's features.
    """
    options = options or PredictOptions()
    caveat = _caveat(graph)
    graph = graph.require_finite()
    if (
        attempt is None or options.heads is not None
    ):  # a file that the user named is whole or refused
        attempt = _estimate_or_raise
    if options.heads is not None:
        heads = load_heads(options.heads)
    chosen = _select_heads(embedded_heads() if heads is None else heads, options.properties)
    if options.like is not None:
        chosen = heads_like(chosen, options.like)
    needed = {name for head in chosen.values() for name in head.encoders}
    encode = EncodeOptions(sane=options.sane, device=options.device, report=report)
    others, builtin = encoders or {}, dict(ENCODERS)
    fitted_on = ""
    if "sane" in needed:
        model = load_model(encode) if sane is None else sane
        fitted_on = fingerprint(model)
        if sane is not None or options.sane is not None:  # it was chosen for all of the heads
            for name, head in chosen.items():
                _require_same_sane(options.heads, name, head, fitted_on)
        builtin["sane"] = SaneEncoder(model)
    ours = needed & builtin.keys()
    features = {name: builtin[name].features(graph, encode).numpy() for name in ours}
    features[STRUCTURE] = structure(graph)

    def estimate(name: str, head: AnyHead) -> AnyEstimate:
        _require_same_sane(options.heads, name, head, fitted_on)
        for encoder in head.encoders:
            if encoder not in features:  # of a plugin: where it fails, its heads alone are left out
                _require_offered(options.heads, name, encoder, others)
                values = others[encoder].features(graph, replace(encode, encoder=encoder))
                features[encoder] = values.numpy()
        _require_same_features(options.heads, name, head, features)
        # A copy: a head of a plugin may change what it is given.
        result = head.estimate({key: x.copy() for key, x in features.items()})
        _require_number(options.heads, name, result)
        return result

    estimates = {
        name: attempt(head, partial(estimate, name, head)) for name, head in chosen.items()
    }
    return {name: replace(x, caveat=caveat) for name, x in estimates.items() if x is not None}


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


def heads_like(heads: Mapping[str, AnyHead], zoo: str) -> dict[str, AnyHead]:
    """Return the heads with the experts for networks like those of a zoo alone.

    Raises `UsageError` where no head was fitted on a zoo of that name.
    """
    known = sorted({name for head in heads.values() for name in getattr(head, "zoos", ())})
    if zoo not in known:
        raise UsageError(
            f"like '{zoo}'",
            "no head was fitted on a zoo of that name",
            f"one of {', '.join(known)} is needed" if known else "the heads name no zoos",
            "check the name" if known else "fit heads with 'sane-plugins heads fit'",
        )
    return {
        name: head.like(zoo) if isinstance(head, KindsHead) and zoo in head.zoos else head
        for name, head in heads.items()
    }


@lru_cache(maxsize=1)
def embedded_heads() -> Mapping[str, AnyHead]:
    """Return the heads that ship with the package, by property."""
    with as_file(files("sane_plugins") / "data" / "heads.safetensors") as path:
        return MappingProxyType(load_heads(path))  # plugins get it too


def _caveat(graph: WeightGraph) -> str:
    """Return why estimates of a network are no measurement, by what its file says; else empty."""
    initial = initial_weights(graph)
    if initial is None:
        return ""
    return (
        f"{initial.describe()}: the heads were fitted on networks in training, so their estimates are no"
        " measurement of these"
    )


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
            ).as_unknown()
    return {name: heads[name] for name in properties or heads}


def _estimate_or_raise(_: AnyHead, make: Callable[[], AnyEstimate]) -> AnyEstimate:
    return make()


def _require_offered(
    file: Path | None, name: str, encoder: str, encoders: Mapping[str, Encoder]
) -> None:
    """Raise `ZooError` unless somebody offers the encoder whose features a head reads."""
    if encoder not in encoders:
        known = ", ".join(sorted({*ENCODERS, *encoders}))
        raise ZooError(
            _place(file, name),
            f"the head of '{name}' reads features of the encoder '{encoder}'",
            f"the encoders are {known}",
            "install its plugin, or see 'sane-plugins list'",
        ).as_unknown()


def _require_same_features(
    file: Path | None, name: str, head: AnyHead, features: Mapping[str, Array]
) -> None:
    """Raise `ZooError` unless a head reads as many features as the encoders give."""
    for one in head.experts if isinstance(head, KindsHead) else [head]:
        given = sum(len(features[encoder]) for encoder in one.encoders)
        if isinstance(one, Head) and given != len(one.support.centre):
            raise _other_features(file, name, len(one.support.centre), given)
    if isinstance(head, KindsHead) and head.ranker:
        needed = 1 + max(int(x.feature.max()) for x in head.ranker if isinstance(x, Trees))
        if needed > (given := len(features[RANKER_FEATURES])):
            raise _other_features(file, name, needed, given)


def _other_features(file: Path | None, name: str, needed: int, given: int) -> ZooError:
    return ZooError(
        _place(file, name),
        f"the head of '{name}' reads {needed} features",
        f"its encoders give {given}",
        "fit it again with 'sane-plugins heads fit'",
    )


def _require_number(file: Path | None, name: str, estimate: AnyEstimate) -> None:
    """Raise `ZooError` for an estimate that is no number, or whose bounds are none."""
    if isinstance(estimate, Estimate):
        score = estimate.value if estimate.score is None else estimate.score
        is_number = np.isfinite([estimate.value, score]).all()
        is_number &= not np.isnan(estimate.interval).any()
    else:
        is_number = np.isfinite([*estimate.probabilities.values()]).all()
    if not is_number:
        raise ZooError(
            _place(file, name),
            f"the head of '{name}' gives no number for this network",
            "an estimate is finite",
            "fit it again with 'sane-plugins heads fit'",
        )


def _require_same_sane(file: Path | None, name: str, head: AnyHead, model_fingerprint: str) -> None:
    if head.sane and head.sane != model_fingerprint:
        raise ZooError(
            _place(file, name),
            f"the head of '{name}' reads features of SANE {head.sane}",
            f"this SANE is {model_fingerprint}",
            "use the SANE it was fitted with, or fit the head again",
        )


def _place(file: Path | None, name: str) -> object:
    """Return where a head came from: a file of heads, or a plugin."""
    return file or f"property '{name}'"
