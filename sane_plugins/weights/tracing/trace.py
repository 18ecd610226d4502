"""Symbolic trace of a torch module (torch.fx): its layers and how they are connected.

Layers are recognised by module type, function object and method; never by a layer's name.
"""

from __future__ import annotations

import time

from torch import fx, nn

from sane_plugins.weights.layers import Layer
from sane_plugins.weights.tracing.layer_reader import LayerReader
from sane_plugins.weights.tracing.tracer import Tracer

_DISTURBED_TRIALS, _DOUBTFUL_TRIALS, _PAUSE = 100, 3, 0.02  # traces, and seconds between them


def trace(module: nn.Module) -> tuple[Layer, ...] | None:
    """Return the layers in execution order, or None where the module cannot be traced.

    A module's layer has its qualified name and no params yet; its further calls end in `#1`, `#2`,
    ... A `parameter` layer has its qualified key. Names of other layers start with `%`. A copy of the
    module is traced, in evaluation mode and without its hooks. A part that cannot be traced is one
    `opaque` layer.
    """
    graph = _trace_graph(module)
    return None if graph is None else tuple(LayerReader(module).read(graph))


def trace_calls(module: nn.Module) -> dict[str, fx.Node]:
    """Return what computes each layer of `trace`, by the layer's name; empty where that gives None.

    The values are nodes of torch.fx, whose target is the function, the method or the name of the module that
    is called.
    """
    graph = _trace_graph(module)
    if graph is None:
        return {}
    reader = LayerReader(module)
    reader.read(graph)
    return reader.calls()


def _trace_graph(module: nn.Module) -> fx.Graph | None:
    """Return the graph of a module's calls, or None where it cannot be traced."""
    for trial in range(_DISTURBED_TRIALS):
        tracer = Tracer(param_shapes_constant=True)
        try:
            graph = tracer.trace(module)
        except Exception as error:  # any code runs in a forward, so anything may be raised there
            graph = None
            tracer.note_failure(error)
        if not tracer.is_disturbed or (tracer.is_doubtful and trial >= _DOUBTFUL_TRIALS):
            break
        time.sleep(_PAUSE)
    return graph
