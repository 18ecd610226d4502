"""One network of a report: read once, looked at in several ways, each of which may fail by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sane_plugins.errors import SaneError, UsageError
from sane_plugins.fingerprints import NetworkFingerprint, fingerprint
from sane_plugins.health import Health, check_network
from sane_plugins.properties import AnyEstimate
from sane_plugins.weights import WeightGraph

T = TypeVar("T")
Predict = Callable[[WeightGraph], Mapping[str, AnyEstimate]]


@dataclass(frozen=True, kw_only=True)
class ReportedNetwork:
    """A network to report on: its name, how it is opened, and what was measured of it."""

    name: str
    open: Callable[[], WeightGraph]
    measured: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class NetworkRow:
    """What is known of one network.

    `health` is None where it could not be read. `errors` says what failed, by step: "read", "check",
    "fingerprint" or "predict". `parameters` counts floating-point values.
    """

    name: str
    parameters: int | None
    health: Health | None
    measured: Mapping[str, Any]
    predictions: Mapping[str, AnyEstimate]
    errors: Mapping[str, str]

    @property
    def is_broken(self) -> bool:
        """Return whether it could be read and has a fault."""
        return self.health is not None and not self.health.is_healthy

    @property
    def is_healthy(self) -> bool:
        """Return whether it could be read and has no fault."""
        return self.health is not None and self.health.is_healthy

    @property
    def verdict(self) -> str:
        """Return the kinds of its faults, that there is none, or that it cannot be read."""
        return "unreadable" if self.health is None else self.health.verdict


def examine(
    network: ReportedNetwork, predict: Predict, *, with_fingerprint: bool
) -> tuple[NetworkRow, NetworkFingerprint | None]:
    """Return what is known of a network, and its fingerprint if it is wanted and there is one.

    A wrong command or call (`UsageError`) is raised.
    """
    errors: dict[str, str] = {}

    def attempt(step: str, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except UsageError:
            raise
        except SaneError as error:
            errors[step] = str(error)
            return None

    graph = attempt("read", network.open)
    health = fingerprinted = predictions = None
    if graph is not None:
        health = attempt("check", lambda: check_network(graph))
    if graph is not None and health is not None:  # what cannot be read through fails once
        predictions = attempt("predict", lambda: predict(graph))
        if with_fingerprint:
            fingerprinted = attempt("fingerprint", lambda: fingerprint(graph))
    row = NetworkRow(
        name=network.name,
        parameters=None if graph is None else sum(param.size for param in graph.params),
        health=health,
        measured=network.measured,
        predictions=predictions or {},
        errors=errors,
    )
    return row, fingerprinted
