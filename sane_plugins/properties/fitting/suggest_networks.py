"""Which networks of a zoo should be measured next, so that a head learns most from them?

The method: docs/explanation/sane.md, section 18.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sane_plugins.arguments import require_field_types, require_ranges
from sane_plugins.autoencoder import SANE
from sane_plugins.display import ShortRepr
from sane_plugins.errors import SourceError, UsageError, ZooError
from sane_plugins.features import SaneEncoder, StatisticsEncoder
from sane_plugins.progress import Report, silent
from sane_plugins.properties.dataset import FEATURES
from sane_plugins.properties.fitting.selection import CRITERIA, embed_rows
from sane_plugins.properties.fitting.zoo_features import zoo_features
from sane_plugins.properties.regressors import Array
from sane_plugins.zoo import Entry, Zoo


@dataclass(frozen=True, kw_only=True)
class SuggestOptions:
    """The property to be measured, of how many networks, the features of a head, and how to choose."""

    property: str = "test_accuracy"
    count: int = 20
    features: str = "statistics"
    criterion: str = "bait"

    def __post_init__(self) -> None:
        require_field_types(self)
        require_ranges(self, {"count": (1, 1_000_000)})
        for name, given, known in (
            ("features", self.features, FEATURES),
            ("criterion", self.criterion, CRITERIA),
        ):
            if given not in known:
                raise UsageError(
                    f"SuggestOptions, {name}",
                    f"'{given}' was given",
                    f"one of {', '.join(known)} is needed",
                    "check the name",
                )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Suggestions(ShortRepr):
    """Entries to measure, the one that teaches most first, of `unmeasured`; `measured` have the property."""

    entries: tuple[Entry, ...]
    measured: int
    unmeasured: int
    notes: tuple[str, ...]


def suggest_networks(
    zoo: Zoo, options: SuggestOptions, model: SANE | None = None, report: Report = silent
) -> Suggestions:
    """Choose entries without the property from which a head learns most, given those that have it.

    `model` is needed for features `sane` and `both`. Features are kept in the zoo's folder. Raises `ZooError`
    where all entries have the property.
    """
    finite, notes = _finite(zoo)
    measured = [i for i, entry in enumerate(finite) if options.property in entry.properties]
    if len(measured) == len(finite):
        raise ZooError(
            zoo.folder,
            f"all of its {len(finite)} checkpoints that can be used have '{options.property}'",
            "some without are needed to choose from",
            "name another property with --property, or add networks with 'sane-plugins zoo add'",
        )
    parts: list[Array] = []
    for name in FEATURES[options.features]:
        encoder = SaneEncoder(model) if name == "sane" else StatisticsEncoder()
        own_model = model if name == "sane" else None
        features, told = zoo_features(zoo, finite, encoder, own_model, report)
        parts.append(features)
        notes += told
    limit = np.finfo(np.float32).max / 2
    rows = embed_rows(np.clip(np.concatenate(parts, axis=1), -limit, limit))
    chosen = CRITERIA[options.criterion](rows, measured, options.count)
    return Suggestions(
        entries=tuple(finite[i] for i in chosen),
        measured=len(measured),
        unmeasured=len(finite) - len(measured),
        notes=tuple(dict.fromkeys(notes)),
    )


def _finite(zoo: Zoo) -> tuple[Sequence[Entry], list[str]]:
    """Return the entries whose weights are finite and can be read, and a note on the others."""
    kept = []
    for entry in zoo.entries:
        stored = entry.properties.get("finite")
        try:
            is_finite = zoo.graph(entry).is_finite if stored is None else bool(stored)
        except (SourceError, ZooError):
            is_finite = False
        if is_finite:
            kept.append(entry)
    left_out = len(zoo.entries) - len(kept)
    notes = [f"{left_out} checkpoints are left out: they cannot be read, or are not finite"]
    if not kept:
        raise ZooError(
            zoo.folder,
            "none of its networks can be used",
            "networks of finite weights are needed",
            "see 'sane-plugins zoo show'",
        )
    return kept, notes if left_out else []
