"""Fit property heads to zoos: extract features once, then fit a head per property."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sane_plugins.arguments import require_field_types
from sane_plugins.autoencoder import SANE, fingerprint
from sane_plugins.display import ShortRepr
from sane_plugins.errors import UsageError
from sane_plugins.features import Encoder, SaneEncoder, StatisticsEncoder
from sane_plugins.progress import Report, silent
from sane_plugins.properties.category_head import fit_category
from sane_plugins.properties.dataset import AUTO, FEATURES, FeatureDataset
from sane_plugins.properties.head_file import AnyHead
from sane_plugins.properties.numeric_head import fit_head
from sane_plugins.properties.prediction import extract_features
from sane_plugins.zoo import Entry, Zoo


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Properties to fit, the feature set (`auto` selects one), and the seed of the folds."""

    properties: tuple[str, ...] = ("test_accuracy", "gap", "epoch")
    features: str = AUTO
    seed: int = 0

    def __post_init__(self) -> None:
        require_field_types(self)


@dataclass(frozen=True, eq=False, repr=False)
class FittedHeads(ShortRepr):
    """Fitted heads by property, and notes on networks that were left out."""

    heads: Mapping[str, AnyHead]
    notes: tuple[str, ...]


def fit_heads(
    zoos: Sequence[Zoo], model: SANE, options: FitOptions, report: Report = silent
) -> FittedHeads:
    """Fit one head per property; non-numeric properties get a category head.

    Networks with NaN or infinite weights are left out, as are, for each property, networks without it.
    Raises `UsageError` for a property that no network has and `ZooError` if too few networks have it.
    """
    every = [entry for zoo in zoos for entry in zoo.entries]
    for name in options.properties:
        _require_known(name, every)
    # Zoos are numbered, because two with the same name may hold different runs.
    finite = [
        (i, zoo, entry)
        for i, zoo in enumerate(zoos)
        for entry in zoo.entries
        if _is_finite(zoo, entry)
    ]
    notes = _exclusion_note(len(every) - len(finite), "have values that are not finite")
    samples = extract_features(
        (zoo.graph(entry) for _, zoo, entry in finite),
        [f"{zoo.name}-{i}-{entry.network}" for i, zoo, entry in finite],
        _encoders(options.features, model),
        report,
    )
    heads: dict[str, AnyHead] = {}
    for name in options.properties:
        has = np.array([name in entry.properties for _, _, entry in finite])
        notes += _exclusion_note(int((~has).sum()), f"have no '{name}'")
        values = [entry.properties[name] for _, _, entry in finite if name in entry.properties]
        heads[name] = _fit(name, samples.rows(has), values, model, options, report)
    return FittedHeads(heads, notes)


def _fit(
    name: str,
    samples: FeatureDataset,
    values: Sequence[float | str | bool],
    model: SANE,
    options: FitOptions,
    report: Report,
) -> AnyHead:
    sane, seed, features = fingerprint(model), options.seed, options.features
    if any(isinstance(value, str | bool) for value in values):
        return fit_category(
            name,
            samples,
            [str(value) for value in values],
            sane=sane,
            seed=seed,
            features=features,
            report=report,
        )
    return fit_head(
        name,
        samples,
        np.array(values, dtype=float),
        sane=sane,
        seed=seed,
        features=features,
        report=report,
    )


def _encoders(features: str, model: SANE) -> dict[str, Encoder]:
    """Return the encoders that a feature set needs."""
    available: dict[str, Encoder] = {"sane": SaneEncoder(model), "statistics": StatisticsEncoder()}
    return {name: available[name] for name in FEATURES.get(features, tuple(available))}


def _is_finite(zoo: Zoo, entry: Entry) -> bool:
    """Return whether a network's weights are finite, trusting the property `finite` if present."""
    stored = entry.properties.get("finite")
    if stored is not None:
        return bool(stored)
    return zoo.graph(entry).is_finite


def _exclusion_note(count: int, reason: str) -> tuple[str, ...]:
    return (f"{count} networks were left out: they {reason}",) if count else ()


def _require_known(name: str, entries: Sequence[Entry]) -> None:
    if any(name in entry.properties for entry in entries):
        return
    known = sorted({key for entry in entries for key in entry.properties})
    raise UsageError(
        f"property '{name}'",
        "no network of the zoos has it",
        f"one of {', '.join(known)} is needed",
        "check the name, or measure it with 'sane-plugins zoo evaluate'",
    )
