"""What stands behind and before a layer: its norm, the scale of its output, its activation.

The method: docs/explanation/sane.md, section 15.1.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sane_plugins.grafting.connections import Activation, Connections
from sane_plugins.grafting.execution import NORMS, Execution
from sane_plugins.grafting.units.unit import Norm
from sane_plugins.weights import WeightGraph, layer_name


class Neighbors:
    """Neighbours of the layers of a network; without connections only the norm that runs next is known."""

    def __init__(
        self,
        module: nn.Module,
        graph: WeightGraph,
        connections: Connections | None,
        runs: Sequence[Execution],
    ) -> None:
        self._modules = dict(module.named_modules())
        self._graph, self._connections, self._runs = graph, connections, runs
        self._roles = {param.key: param.role for param in graph.params}
        self._norms: dict[str, Norm] = {}
        self._taken: set[str] = set()

    @property
    def are_known(self) -> bool:
        """Return whether connections are known."""
        return self._connections is not None

    def reads_input(self, layer: str, *, default: bool) -> bool:
        """Return whether a layer reads the network's input, moved or bent at most; the default if unknown."""
        if self._connections is None:
            return default
        before = list(self._connections.before(layer))[-1:]
        return any(self._connections.layers[name].kind == "input" for name in before)

    def behind(
        self, run: Execution, layer: str, channels: int
    ) -> tuple[Norm | None, str | None, Activation | None]:
        """Return the norm, the key of the scale (channels,) and the activation behind a layer.

        Ask in the order of execution: `norm_before` leaves out what is behind an earlier layer.
        """
        if self._connections is None:
            return self._next_norm(run), None, None
        norm, scale = None, None
        for name in self._connections.behind(layer):
            found = self._connections.layers[name]
            if found.kind == "norm" and norm is None:
                norm = self._norm(name)
                self._taken.add(name)
            elif activation := self._connections.activation(name):
                return norm, scale, activation
            elif found.kind == "join" and scale is None and self._connections.is_product(name):
                scale = self._vector(name, channels)
                if scale is None:
                    break
            elif found.kind not in ("pointwise", "permute", "transpose") or found.dims[:1] == (1,):
                break
        return norm, scale, None

    def norm_before(self, layer: str) -> Norm | None:
        """Return the norm through which all passes that a layer reads, where it is behind no other layer."""
        if self._connections is None:
            return None
        for source in self._connections.before(layer):
            if self._connections.layers[source].kind == "norm":
                return None if source in self._taken else self._norm(source)
        return None

    def _vector(self, name: str, channels: int) -> str | None:
        """Return the key of the vector that a layer multiplies by."""
        params = [] if self._connections is None else self._connections.params(name)
        return next((p.key for p in params if p.size == channels), None)

    def _next_norm(self, run: Execution) -> Norm | None:
        after = self._runs[[x.name for x in self._runs].index(run.name) + 1 :][:1]
        if not after or not isinstance(after[0].module, NORMS) or after[0].read != run.returned:
            return None
        keys = {
            self._roles[key]: key
            for attribute in ("weight", "bias", "running_mean", "running_var")
            if (key := key_of(self._graph, after[0].name, attribute))
        }
        return Norm(name=after[0].name, module=after[0].module, keys=keys) if keys else None

    def _norm(self, name: str) -> Norm | None:
        """Return a norm layer that has tensors, always the same."""
        if self._connections is None:
            return None
        params = [p for p in self._connections.params(name) if p.role != "other"]
        if name not in self._norms and params:
            owner = layer_name(params[0].key)
            keys = {p.role: p.key for p in params}
            self._norms[name] = Norm(name=owner, module=self._modules.get(owner), keys=keys)
        return self._norms.get(name)


def key_of(graph: WeightGraph, name: str, attribute: str) -> str | None:
    """Return the key of a layer's tensor in a graph, by its first name where it has several."""
    key = f"{name}.{attribute}" if name else attribute
    key = graph.ties.get(key, key)
    return key if key in graph.tensors and key not in graph.untouched else None


def required_key(graph: WeightGraph, name: str) -> str:
    """Return the key of a layer's weight, which it has."""
    key = key_of(graph, name, "weight")
    assert key is not None  # layers without are no units
    return key
