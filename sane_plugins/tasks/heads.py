"""Property heads: from features of a network to one property, with an interval and a doubt.

A head's features and regressor are chosen by cross-validation that keeps all checkpoints of a network
together. The held-out residuals of that cross-validation calibrate a conformal interval (spec sections 5
and 8).
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from sane_plugins.errors import ZooError
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.tasks import regressors
from sane_plugins.tasks.regressors import BASES, REGRESSORS, Array, Member
from sane_plugins.tasks.support import Support, fit_support

COVERAGE = 0.9
FOLDS = 5
FEATURES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"sane": ("sane",), "statistics": ("statistics",), "both": ("sane", "statistics")}
)
STRUCTURE = "structure"
"""The features that no regressor reads: counts of tensors and size, which say what kind of network it is."""
PROPERTIES: Mapping[str, tuple[str, float, float]] = MappingProxyType({
    "test_accuracy": ("share", 0.0, 1.0),
    "train_accuracy": ("share", 0.0, 1.0),
    "gap": ("share", -1.0, 1.0),
    "epoch": ("epochs", 0.0, np.inf),
})  # fmt: skip
"""Unit and range of the properties that we know; others have no unit and any value."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A predicted property with the interval that holds the true value with probability `coverage`.

    The promise holds for networks like those the head was fitted on; `in_distribution` says whether this one
    is. `features` names the encoders whose features were read.
    """

    property: str
    value: float
    unit: str
    interval: tuple[float, float]
    coverage: float
    in_distribution: bool
    features: str


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What heads are fitted on: features (N, F) by encoder, and the network that each row is from."""

    features: Mapping[str, Array]
    networks: Sequence[str]

    def rows(self, keep: Array) -> Samples:
        """Return the samples that a mask or an index picks."""
        picked = {name: x[keep] for name, x in self.features.items()}
        return Samples(features=picked, networks=list(np.asarray(self.networks)[keep]))


@dataclass(frozen=True, kw_only=True)
class PropertyHead:
    """One property: its features, fitted members, conformal radius and what it knows of its inputs.

    `structure` (2, 3) is the least and the most of the structures it was fitted on.

    `scores` are the cross-validated R^2 of everything that was tried. `sane` is the fingerprint of the SANE
    whose features it reads, empty where it reads none.
    """

    property: str
    unit: str
    low: float
    high: float
    features: str
    regressor: str
    members: tuple[Member, ...]
    radius: float
    support: Support
    scores: Mapping[str, float]
    structure: Array
    coverage: float = COVERAGE
    sane: str = ""

    @builtins.property  # a field has that name
    def encoders(self) -> tuple[str, ...]:
        """Return the names of the encoders whose features it reads."""
        return FEATURES[self.features]

    def predict(self, features: Mapping[str, Array]) -> Array:
        """Predict (N,) from features (N, F) by encoder, kept within the property's range."""
        return np.clip(self._raw(join(features, self.features)), self.low, self.high)

    def estimate(self, features: Mapping[str, Array]) -> Estimate:
        """Estimate the property of one network from its features (F,) by encoder, and its structure."""
        x = join({name: features[name][None] for name in self.encoders}, self.features)
        value = float(self._raw(x)[0])
        ends = np.clip([value - self.radius, value + self.radius], self.low, self.high)
        return Estimate(
            property=self.property, value=float(np.clip(value, self.low, self.high)), unit=self.unit,
            interval=(float(ends[0]), float(ends[1])), coverage=self.coverage,
            in_distribution=bool(self.support.holds(x)[0]) and self._knows(features),
            features=self.features,
        )  # fmt: skip

    def _knows(self, features: Mapping[str, Array]) -> bool:
        """Tell whether a network has as many tensors as some it was fitted on, and about their size."""
        low, high = self.structure + np.array([[0, 0, -1], [0, 0, 1]])
        found = features[STRUCTURE]
        return bool(((low <= found) & (found <= high)).all())

    def _raw(self, x: Array) -> Array:
        return regressors.predict(self.members, x)


def join(features: Mapping[str, Array], name: str) -> Array:
    """Return the features (N, F) float32 of a set such as `both`, side by side."""
    parts = np.concatenate([features[encoder] for encoder in FEATURES[name]], axis=1)
    top = np.finfo(np.float32).max / 2
    return np.asarray(np.clip(parts, -top, top).astype(np.float32))


def fit_head(
    name: str, samples: Samples, targets: Array, *, sane: str = "", seed: int = 0,
    report: Report = silent,
) -> PropertyHead:  # fmt: skip
    """Fit a head: choose features and regressor by grouped cross-validation, refit on everything.

    targets (N,) in the property's unit. Raises `ZooError` for fewer networks than folds, and for targets or
    features that are not finite.
    """
    _require(name, samples, targets)
    held_out = cross_predict(samples, targets, seed, report)
    spread = float(targets.var()) or 1.0
    scores = {key: 1 - float(((p - targets) ** 2).mean()) / spread for key, p in held_out.items()}
    best = max(scores, key=lambda key: scores[key])
    features, regressor = best.split("/")
    unit, low, high = PROPERTIES.get(name, ("", -np.inf, np.inf))
    residuals = np.abs(np.clip(held_out[best], low, high) - targets)
    x = join(samples.features, features)
    return PropertyHead(
        property=name, unit=unit, low=low, high=high, features=features, regressor=regressor,
        members=fit_members(regressor, x, targets), radius=conformal_radius(residuals, COVERAGE),
        support=fit_support(x, group_folds(samples.networks, FOLDS, seed)), scores=scores,
        sane=sane if "sane" in FEATURES[features] else "", structure=_bounds(samples),
    )  # fmt: skip


def _bounds(samples: Samples) -> Array:
    found = samples.features[STRUCTURE]
    return np.stack([found.min(0), found.max(0)])


def fit_members(regressor: str, x: Array, y: Array) -> tuple[Member, ...]:
    """Fit what a regressor's name says."""
    return tuple(member for base in REGRESSORS[regressor] for member in BASES[base](x, y))


def cross_predict(
    samples: Samples, targets: Array, seed: int = 0, report: Report = silent
) -> dict[str, Array]:
    """Return held-out predictions (N,) of every `features/regressor`; no network is on both sides."""
    folds = group_folds(samples.networks, FOLDS, seed)
    usable = [name for name, parts in FEATURES.items() if set(parts) <= set(samples.features)]
    found: dict[str, Array] = {}
    for i, name in enumerate(usable):
        report(Progress(job="property head", done=i, total=len(usable), note=name))
        bases = _held_out_bases(join(samples.features, name), targets, folds)
        for regressor, parts in REGRESSORS.items():
            found[f"{name}/{regressor}"] = np.mean([bases[part] for part in parts], axis=0)
    return found


def _held_out_bases(x: Array, y: Array, folds: Sequence[Array]) -> dict[str, Array]:
    found = {name: np.zeros(len(y)) for name in BASES}
    for test in folds:
        for name, fit in BASES.items():
            found[name][test] = regressors.predict(fit(x[~test], y[~test]), x[test])
    return found


def group_folds(networks: Sequence[str], folds: int, seed: int) -> list[Array]:
    """Return masks (N,) of held-out rows; each row is in one, and all rows of a network in the same."""
    names = np.unique(np.asarray(networks))
    order = np.random.default_rng(seed).permutation(len(names))
    return [np.isin(networks, names[order[i::folds]]) for i in range(folds)]


def conformal_radius(residuals: Array, coverage: float) -> float:
    """Return the radius that covers a new residual with at least this probability (split conformal).

    residuals (N,): magnitudes on held-out, exchangeable rows. Infinite where N is too small to promise it.
    """
    rank = int(np.ceil((len(residuals) + 1) * coverage))
    return float(np.sort(residuals)[rank - 1]) if rank <= len(residuals) else float("inf")


def _require(name: str, samples: Samples, targets: Array) -> None:
    for problem, needed in _problems(samples, targets):
        raise ZooError(f"property '{name}'", problem, needed, "choose other networks to fit on")


def _problems(samples: Samples, targets: Array) -> Iterator[tuple[str, str]]:
    networks = len(set(samples.networks))
    if networks < 2 * FOLDS:
        yield f"{networks} networks were given", f"{2 * FOLDS} are needed to choose and calibrate"
    if not all(np.isfinite(x).all() for x in [targets, *samples.features.values()]):
        yield "a value is not finite", "features and measured values must be finite"
