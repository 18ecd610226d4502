"""The contract of encoders."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from sane_plugins.testing.contract import ContractError, in_threads, quiet, require_same
from sane_plugins.testing.example_networks import example_graphs
from sane_plugins.testing.plugin_host import empty_host, require_no_problem

if TYPE_CHECKING:
    from sane_plugins.features import EncodeOptions
    from sane_plugins.host import Host
    from sane_plugins.weights import WeightGraph

_SAME = "compute from the weights alone"


def check_encoder(encoder: Any) -> None:
    """Raise `ContractError` unless an encoder keeps its contract; what it raises itself is raised.

    It encodes networks of several architectures into finite numbers, the same bytes each time, alone and in
    threads, gives as many features for each architecture, leaves the weights alone, and prints nothing.
    """
    from sane_plugins.features import EncodeOptions

    host, options = empty_host(), EncodeOptions(encoder=encoder.name)
    lengths = {}
    with quiet("the encoder"):
        for graph in example_graphs():
            before = {key: tensor.clone() for key, tensor in graph.state_dict().items()}
            numbers = partial(_numbers, host, encoder, graph, options)
            first = numbers()
            require_same(numbers(), first, f"{graph.source} is encoded otherwise again", _SAME)
            now = graph.state_dict()
            require_same(now, before, "the encoder changes the weights", "compute with copies")
            for other in in_threads(lambda _, numbers=numbers: numbers()):  # type: ignore[misc]
                require_same(other, first, "it encodes otherwise beside other threads", _SAME)
            lengths[graph.source] = len(first["features"])
    if len(set(lengths.values())) > 1:
        raise ContractError(
            f"features have different lengths ({lengths}): heads need as many for every architecture"
        )


def _numbers(
    host: Host, encoder: Any, graph: WeightGraph, options: EncodeOptions
) -> dict[str, Any]:
    """Return what an encoder computes of a network, checked as hosts do."""
    import torch

    encoding, problem = host.use("sane_encoders", encoder, lambda: encoder.encode(graph, options))
    require_no_problem([problem] if problem else [])
    features = encoder.features(graph, options)
    if not isinstance(features, torch.Tensor) or features.ndim != 1:
        raise ContractError("features must return a tensor (F,)")
    if not bool(torch.isfinite(features).all()):
        raise ContractError(f"its features of {graph.source} are not finite")
    return {
        "embedding": encoding.embedding,
        "layers": encoding.layers,
        "names": encoding.names,
        "features": features,
    }
