"""Predict latency from what was measured of other networks on one machine, with an interval.

The method: docs/explanation/sane.md, section 17.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from sane_plugins.cost.network_cost import NetworkCost
from sane_plugins.errors import UsageError

Array = npt.NDArray[Any]
COVERAGE = 0.9
MIN_NETWORKS = 9  # below, no interval of that coverage is finite
_SHORTEST = 1e-9  # seconds


@dataclass(frozen=True, kw_only=True)
class LatencyEstimate:
    """Seconds of a pass, predicted, and an interval for the share `coverage` of networks like the measured.

    `networks` says how many were measured.
    """

    seconds: float
    interval: tuple[float, float]
    coverage: float
    networks: int
    device: str
    threads: int
    clock: str


@dataclass(frozen=True, kw_only=True, eq=False)
class LatencyModel:
    """Seconds as a sum of costs, each at a rate of its own, for one way of measuring.

    `rates` (K,) are those fitted to all networks, `members` (N, K) those fitted without one of them, and
    `residuals` (N,) how far each of these is off for that network, in logs.
    """

    rates: Array
    members: Array
    residuals: Array
    device: str
    threads: int
    clock: str

    def predict(self, cost: NetworkCost) -> LatencyEstimate | None:
        """Predict a network's latency, with the jackknife+ interval (Barber et al. 2021).

        None where what it reads and writes is not known.
        """
        if cost.moved_bytes is None:
            return None
        terms = _terms([cost])[0]
        left_out, count = _log_seconds(self.members, terms), len(self.residuals)
        rank = ceil(COVERAGE * (count + 1))
        low = float(np.exp(np.sort(left_out - self.residuals)[count - rank]))
        high = float(np.exp(np.sort(left_out + self.residuals)[rank - 1]))
        seconds = float(np.exp(_log_seconds(self.rates, terms)))
        return LatencyEstimate(
            seconds=seconds,
            interval=(min(low, seconds), max(high, seconds)),
            coverage=COVERAGE,
            networks=count,
            device=self.device,
            threads=self.threads,
            clock=self.clock,
        )


def fit_latency(
    measured: Sequence[NetworkCost], place: object = "the measured networks"
) -> LatencyModel:
    """Fit latency to networks whose latency was measured in one way.

    Raises `UsageError`, about `place`, where they are too few, or were measured in several ways.
    """
    known = [(x, x.latency) for x in measured if x.latency and x.moved_bytes is not None]
    ways = sorted({(x.device, x.threads, x.clock) for _, x in known})
    if len(known) < MIN_NETWORKS:
        raise UsageError(
            place,
            f"it has the latencies of {len(known)} networks",
            f"at least {MIN_NETWORKS} are needed",
            "measure more with 'sane-plugins cost SOURCE... --latency --json'",
        )
    if len(ways) > 1:
        told = "; ".join(f"{device}, {threads} threads, {clock}" for device, threads, clock in ways)
        raise UsageError(
            place,
            f"latencies were measured in several ways ({told})",
            "one device, number of threads and clock are needed",
            "name the runs of one",
        )
    terms = _terms([cost for cost, _ in known])
    seconds = np.array([latency.seconds for _, latency in known])
    members = np.array(
        [_fit(np.delete(terms, i, 0), np.delete(seconds, i)) for i in range(len(known))]
    )
    predicted = [_log_seconds(member, own) for member, own in zip(members, terms, strict=True)]
    device, threads, clock = ways[0]
    return LatencyModel(
        rates=_fit(terms, seconds),
        members=members,
        residuals=np.abs(np.log(seconds) - np.array(predicted)),
        device=device,
        threads=threads,
        clock=clock,
    )


def _terms(costs: Sequence[NetworkCost]) -> Array:
    """Return what takes time (N, K): MACs, those in groups, bytes moved, and operations."""
    rows = [(x.macs - x.grouped_macs, x.grouped_macs, x.moved_bytes, x.operations) for x in costs]
    return np.array(rows, dtype=float)


def _fit(terms: Array, seconds: Array) -> Array:
    """Return rates (K,), none negative, of the least squared relative error."""
    from scipy.optimize import nnls

    scale = np.maximum(terms.max(0), 1.0)
    rates, _ = nnls(terms / scale / seconds[:, None], np.ones(len(seconds)))
    return np.asarray(rates / scale)


def _log_seconds(rates: Array, terms: Array) -> Array:
    return np.asarray(np.log(np.maximum(rates @ terms, _SHORTEST)))
