"""Fit property heads to zoos: extract features once, then fit a head per property."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from sane_plugins.arguments import require_field_types
from sane_plugins.autoencoder import SANE, fingerprint
from sane_plugins.display import ShortRepr
from sane_plugins.errors import UsageError, ZooError
from sane_plugins.features import Encoder, SaneEncoder, StatisticsEncoder, structure
from sane_plugins.progress import Report, silent
from sane_plugins.properties.dataset import AUTO, FEATURES, STRUCTURE, FeatureDataset
from sane_plugins.properties.fitting.cross_validation import MEAN, SHIPPED, Prior
from sane_plugins.properties.fitting.kinds_fit import fit_kinds
from sane_plugins.properties.fitting.zoo_features import zoo_features
from sane_plugins.properties.heads.category_head import CategoryHead, fit_category
from sane_plugins.properties.heads.head_file import AnyHead
from sane_plugins.properties.heads.kinds_head import experts_of
from sane_plugins.properties.heads.numeric_head import fit_head
from sane_plugins.properties.regressors import Array
from sane_plugins.zoo import Entry, Zoo

USUAL = ("test_accuracy", "gap", "epoch")
_UNMEASURED = ("finite",)  # told of every network, and true of all that are fitted


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Properties to fit, the feature set (`auto` selects one), and the seed of the folds.

    Without properties, test accuracy, gap and epoch are fitted as far as the zoos have them; if they have
    none of these, every column that a head can be fitted to.
    """

    properties: tuple[str, ...] | None = None
    features: str = AUTO
    seed: int = 0

    def __post_init__(self) -> None:
        require_field_types(self)


@dataclass(frozen=True, eq=False, repr=False)
class FittedHeads(ShortRepr):
    """Fitted heads by property, and notes on networks that were left out and on heads that tell nothing."""

    heads: Mapping[str, AnyHead]
    notes: tuple[str, ...]


def fit_heads(
    zoos: Sequence[Zoo],
    model: SANE,
    options: FitOptions,
    report: Report = silent,
    shipped: Mapping[str, AnyHead] | None = None,
) -> FittedHeads:
    """Fit one head per property; non-numeric properties get a category head.

    Networks with NaN or infinite weights are left out, as are, for each property, networks without it.
    Numeric heads of `shipped` may be recalibrated. Features are kept in the folders of the zoos. Raises
    `UsageError` for a property that no network has and `ZooError` if too few networks have it.
    """
    every = [entry for zoo in zoos for entry in zoo.entries]
    names = options.properties or _usual_properties(every)
    for name in names:
        _require_known(name, every)
    # Zoos are numbered, because two with the same name may hold different runs.
    finite = [[entry for entry in zoo.entries if _is_finite(zoo, entry)] for zoo in zoos]
    notes = _exclusion_note(len(every) - sum(map(len, finite)), "have values that are not finite")
    samples, told = _samples(zoos, finite, _encoders(options.features, model), model, report)
    notes += told
    entries = [entry for group in finite for entry in group]
    heads: dict[str, AnyHead] = {}
    for name in names:
        has = np.array([name in entry.properties for entry in entries])
        values = [entry.properties[name] for entry in entries if name in entry.properties]
        prior = (shipped or {}).get(name)
        try:
            heads[name] = _fit(name, samples.rows(has), values, model, options, report, prior)
        except ZooError as error:
            if options.properties or name in USUAL:
                raise
            notes += (f"{name} is left out: {error.found}",)
            continue
        notes += _exclusion_note(int((~has).sum()), f"have no '{name}'")
        notes += _warnings(heads[name])
    if not heads:
        raise _nothing_to_fit(zoos)
    return FittedHeads(heads, notes)


def _usual_properties(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Return the usual properties that there are, or else all columns whose values differ."""
    columns = {name: None for entry in entries for name in entry.properties}
    if usual := tuple(name for name in USUAL if name in columns):
        return usual
    values = {
        name: {entry.properties[name] for entry in entries if name in entry.properties}
        for name in columns
    }
    return tuple(name for name in columns if len(values[name]) > 1 and name not in _UNMEASURED)


def _samples(
    zoos: Sequence[Zoo],
    finite: Sequence[Sequence[Entry]],
    encoders: Mapping[str, Encoder],
    model: SANE,
    report: Report,
) -> tuple[FeatureDataset, tuple[str, ...]]:
    """Return the features of all entries and their structures, and notes."""
    parts: list[dict[str, Array]] = []
    notes: list[str] = []
    used = [
        (i, zoo, group) for i, (zoo, group) in enumerate(zip(zoos, finite, strict=True)) if group
    ]
    if not used:
        raise _nothing_to_fit(zoos)
    for _, zoo, group in used:
        part: dict[str, Array] = {}
        for name, encoder in encoders.items():
            own_model = model if name == "sane" else None
            part[name], told = zoo_features(zoo, group, encoder, own_model, report)
            notes += told
        part[STRUCTURE] = np.stack([structure(zoo.graph(entry)) for entry in group])
        parts.append(part)
    features = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    networks = [f"{zoo.name}-{i}-{entry.network}" for i, zoo, group in used for entry in group]
    names = [zoo.name for _, zoo, group in used for _ in group]
    samples = FeatureDataset(features=features, networks=networks, zoos=names)
    return samples, tuple(dict.fromkeys(notes))


def _fit(
    name: str,
    samples: FeatureDataset,
    values: Sequence[float | str | bool],
    model: SANE,
    options: FitOptions,
    report: Report,
    shipped: AnyHead | None,
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
    fit_one = partial(
        fit_head,
        name,
        sane=sane,
        seed=seed,
        features=features,
        report=report,
        priors=_priors(shipped, samples, sane, features),
    )
    return fit_kinds(name, samples, np.array(values, dtype=float), fit_one, report)


def _priors(
    head: AnyHead | None, samples: FeatureDataset, sane: str, features: str
) -> tuple[Prior, ...]:
    """Return what a head offers that reads features which the samples have, of the same SANE."""
    if head is None or isinstance(head, CategoryHead):
        return ()
    return tuple(
        Prior(features=x.features, members=x.members)
        for x in experts_of(head)
        if features in (AUTO, x.features)
        and set(x.encoders) <= set(samples.features)
        and x.sane in ("", sane)
        and len(x.support.centre) == sum(samples.features[name].shape[1] for name in x.encoders)
    )


def _warnings(head: AnyHead) -> tuple[str, ...]:
    """Return a sentence on each expert that tells no more than the mean, or that is a recalibrated head."""
    if isinstance(head, CategoryHead):
        return ()
    experts = experts_of(head)
    notes = []
    for number, expert in enumerate(experts, 1):
        of = f", kind {number} of {len(experts)}" if len(experts) > 1 else ""
        of += f" ({', '.join(expert.zoos)})" if of and expert.zoos else ""
        best = max(score for name, score in expert.scores.items() if SHIPPED not in name)
        if expert.regressor == MEAN:
            notes.append(
                f"{head.property}{of}: what was tried has a cross-validated R^2 of {best:.2f} at best,"
                " so the head tells the mean and ranks nothing: add networks"
            )
        elif expert.regressor.startswith(SHIPPED):
            notes.append(
                f"{head.property}{of}: the shipped head, recalibrated, has a higher cross-validated R^2"
                f" than what was fitted ({max(expert.scores.values()):.2f} and {best:.2f}), and is used"
            )
    return tuple(notes)


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


def _nothing_to_fit(zoos: Sequence[Zoo]) -> ZooError:
    return ZooError(
        ", ".join(str(zoo.folder) for zoo in zoos),
        "it holds nothing that a head can be fitted to",
        "networks of finite weights with a property that differs between them are needed",
        "measure them with 'sane-plugins zoo evaluate'",
    )


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
