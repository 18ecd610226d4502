"""The contract of property heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from sane_plugins.testing.contract import in_threads, quiet, require_same
from sane_plugins.testing.example_networks import example_graphs
from sane_plugins.testing.plugin_host import empty_host, require_no_problem

if TYPE_CHECKING:
    from sane_plugins.features import Encoder
    from sane_plugins.host import Host
    from sane_plugins.weights import WeightGraph

_SAME = "compute from the features alone"


def check_head(head: Any, encoders: Mapping[str, Encoder] | None = None) -> None:
    """Raise `ContractError` unless a head keeps its contract; what it raises itself is raised.

    It makes whole estimates of networks of several architectures, the same each time, alone and in threads,
    and prints nothing. `encoders` are those beside the built-in ones whose features it reads.
    """
    from sane_plugins.features import ENCODERS

    host, known = empty_host(), {**(encoders or {}), **ENCODERS}
    with quiet("the head"):
        for graph in example_graphs():
            estimate = partial(_estimate, host, head, graph, known)
            first = estimate()
            require_same(estimate(), first, f"{graph.source} is estimated otherwise again", _SAME)
            for other in in_threads(lambda _, estimate=estimate: estimate()):  # type: ignore[misc]
                require_same(other, first, "it estimates otherwise beside other threads", _SAME)


def _estimate(
    host: Host, head: Any, graph: WeightGraph, encoders: Mapping[str, Encoder]
) -> dict[str, Any]:
    """Return a head's estimate of one network, checked as hosts do."""
    from sane_plugins.properties import predict

    def attempt(head: Any, make: Any) -> Any:
        answer, problem = host.use("sane_property_heads", head, make)
        require_no_problem([problem] if problem else [])
        return answer

    estimates = predict(graph, {"it": head}, attempt=attempt, encoders=encoders)
    return asdict(estimates["it"])
