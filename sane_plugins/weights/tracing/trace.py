"""Symbolic trace of a torch module (torch.fx): its layers and how they are connected.

Layers are recognised by module type, function object and method; never by a layer's name.
"""

from __future__ import annotations

import builtins
import math
import time
from collections.abc import Callable, Iterator
from functools import partial, wraps
from threading import Lock
from types import TracebackType
from typing import Any

import torch
from torch import fx, nn
from torch.fx._symbolic_trace import (
    _create_wrapped_func,
    _wrapped_fns_to_patch,
)
from torch.fx.proxy import ParameterProxy

from sane_plugins.runtime import drawing_from
from sane_plugins.weights.layers import Layer
from sane_plugins.weights.module_tensors.copies import ModuleCopies, copy_parameter
from sane_plugins.weights.tracing.channel_ops import OPAQUE, SPATIAL, ChannelOp, ChannelOps
from sane_plugins.weights.tracing.function_channels import function_channel_ops, is_scalar
from sane_plugins.weights.tracing.module_channels import module_channel_op
from sane_plugins.weights.tracing.probed_convolutions import is_plain_convolution
from sane_plugins.weights.validity.operations import possible

_DISTURBED_TRIALS, _DOUBTFUL_TRIALS, _PAUSE = 100, 3, 0.02  # traces, and seconds between them
_UNWRAPPED_ERROR = "must be real number, not Proxy"  # of a function of `math` that is not wrapped
_FX_MARK = "_Patcher__fx_already_patched"  # of what `fx.Tracer` puts in place of functions
_FX_KEEPS = "__fx_already_patched"  # of what it leaves in place and never puts back later
_FOREIGN_ERROR = "module is not installed as a submodule"  # of an `fx.Tracer` that gets our calls


class _UnknownModuleError(Exception):
    """A module was called that is no submodule of the traced one."""


def trace(module: nn.Module) -> tuple[Layer, ...] | None:
    """Return the layers in execution order, or None where the module cannot be traced.

    A module's layer has its qualified name and no params yet; its further calls end in `#1`, `#2`,
    ... A `parameter` layer has its qualified key. Names of other layers start with `%`. A copy of the
    module is traced, in evaluation mode and without its hooks. A part that cannot be traced is one
    `opaque` layer.
    """
    graph = _trace_graph(module)
    return None if graph is None else tuple(_LayerReader(module).read(graph))


def trace_calls(module: nn.Module) -> dict[str, fx.Node]:
    """Return what computes each layer of `trace`, by the layer's name; empty where that gives None.

    The values are nodes of torch.fx, whose target is the function, the method or the name of the module that
    is called.
    """
    graph = _trace_graph(module)
    if graph is None:
        return {}
    reader = _LayerReader(module)
    reader.read(graph)
    return reader.calls()


def _trace_graph(module: nn.Module) -> fx.Graph | None:
    """Return the graph of a module's calls, or None where it cannot be traced."""
    for trial in range(_DISTURBED_TRIALS):
        tracer = _Tracer(param_shapes_constant=True)
        try:
            graph = tracer.trace(module)
        except Exception as error:  # any code runs in a forward, so anything may be raised there
            graph = None
            tracer.note_failure(error)
        if not tracer.is_disturbed or (tracer.is_doubtful and trial >= _DOUBTFUL_TRIALS):
            break
        time.sleep(_PAUSE)
    return graph


class _Tracer(fx.Tracer):
    """Stops at torch's own layers, and at modules that cannot be traced.

    `fx.Tracer` replaces `nn.Module.__call__` and `__getattr__` while it traces, for all threads. Here
    only a copy of the traced module is told to record its calls and parameters. `is_disturbed` after
    something failed while another thread traced in the other way: it then gets the calls of all modules.
    `is_doubtful` where the module itself may have failed.
    """

    is_disturbed = False
    is_doubtful = False

    def trace(self, root: nn.Module, concrete_args: dict[str, Any] | None = None) -> fx.Graph:  # type: ignore[override]
        """Trace a module; the module itself is not called and not changed."""
        copies = ModuleCopies(in_evaluation=True)
        self.root = copies.of(root)
        self._paths: dict[nn.Module, str] = {part: name for name, part in self.root.named_modules()}
        self._keys = {id(value): key for key, value in self.root.named_parameters()}
        self._copied: dict[int, nn.Parameter] = {}
        self._proxies: dict[str, fx.Proxy] = {}
        self.graph = fx.Graph(tracer_cls=type(self))
        self.tensor_attrs = {
            value: f"{path}.{name}" if path else name
            for part, path in self._paths.items()
            for name, value in vars(part).items()
            if isinstance(value, torch.Tensor)
        }
        function, arguments = self.create_args_for_root(type(root).forward, True, concrete_args)
        for part in copies.modules:
            # What torch calls in place of the forward, where a module was compiled.
            vars(part)["_compiled_call_impl"] = partial(self._call, part)
            if not isinstance(part, torch.jit.ScriptModule):
                recorded = _RecordedParameters(vars(part).get("_parameters", {}))
                recorded.record = self._stand_in
                recorded.copied = self._copy_of
                vars(part)["_parameters"] = recorded
        with _wrapped_functions, drawing_from(torch.Generator()):
            for namespace in (function.__globals__, vars(math)):
                _wrapped_functions.wrap(namespace)
            output = self.create_arg(function(*arguments))
            self.create_node("output", "output", (output,), {})
        return self.graph

    def path_of_module(self, mod: nn.Module) -> str:
        """Return a submodule's name; raise `_UnknownModuleError` for any other module."""
        if mod not in self._paths:
            raise _UnknownModuleError(type(mod).__name__)
        return self._paths[mod]

    def note_failure(self, error: Exception) -> None:
        """Note whether another trace in this process, rather than the module, caused a failure."""
        is_foreign = str(error) == _FOREIGN_ERROR or not _wrapped_functions.are_in_place()
        # Another trace that ends may have taken a wrapper away for a moment; or the module holds it.
        self.is_doubtful = not is_foreign and str(error).startswith(_UNWRAPPED_ERROR)
        self.is_disturbed = self.is_disturbed or is_foreign or self.is_doubtful

    def _stand_in(self, parameter: Any) -> Any:
        """Return what stands for a parameter, or any other value as it is."""
        key = self._keys.get(id(parameter))
        if key is not None and key not in self._proxies:
            self._proxies[key] = self.create_proxy(
                "get_attr",
                key,
                (),
                {},
                proxy_factory_fn=lambda node: ParameterProxy(self, node, key, parameter),
            )
        return parameter if key is None else self._proxies[key]

    def create_arg(self, a: Any) -> Any:
        """Return what a node holds of an argument; a copied parameter is the parameter."""
        if isinstance(a, nn.Parameter) and id(a) in self._keys:
            return self.create_node("get_attr", self._keys[id(a)], (), {})
        return super().create_arg(a)

    def _copy_of(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return a parameter's copy, always the same, of a name that is the parameter's."""
        if id(parameter) not in self._copied:
            copied = copy_parameter(parameter)
            self._copied[id(parameter)] = self._copied[id(copied)] = copied
            if (key := self._keys.get(id(parameter))) is not None:
                self._keys[id(copied)] = key
        return self._copied[id(parameter)]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Stop at modules that hooks change before each call, and at compiled ones."""
        if isinstance(m, torch.jit.ScriptModule):
            return True
        is_compiled = hasattr(m.forward, "_torchdynamo_orig_callable")
        is_changed = bool(m._forward_pre_hooks)
        return is_changed or is_compiled or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Trace into a module, or record it as a single step where that fails."""
        last, stack = next(iter(reversed(self.graph.nodes)), None), self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:  # any code runs in a forward, so anything may be raised there
            self.note_failure(error)
            self.module_stack = stack
            while (node := next(iter(reversed(self.graph.nodes)), None)) is not last and node:
                self.graph.erase_node(node)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

    def _call(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Record a call of a module; its hooks do not run, as they would keep symbolic values."""
        namespace = getattr(module.forward, "__globals__", {})
        _wrapped_functions.wrap(namespace)
        return self.call_module(module, module.forward, args, kwargs)


class _RecordedParameters(dict[str, Any]):
    """A module's parameters by name; looking one up records it.

    Iteration gives copies: a forward may clip or normalise all parameters, and they are the host's.
    """

    record: Callable[[Any], Any]
    copied: Callable[[nn.Parameter], nn.Parameter]

    def __getitem__(self, name: str) -> Any:
        return self.record(super().__getitem__(name))

    def __iter__(self) -> Iterator[str]:  # so that `dict(parameters)` looks them up
        return super().__iter__()

    def get(self, name: str, default: Any = None) -> Any:
        """Return what stands for a parameter."""
        return self.record(super().get(name, default))

    def items(self) -> Iterator[tuple[str, Any]]:  # type: ignore[override]
        """Yield names and copies, made when they are asked for."""
        for name, value in super().items():
            yield name, None if value is None else self.copied(value)

    def values(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield copies."""
        return (value for _, value in self.items())


class _WrappedFunctions:
    """Functions that are one step of a trace, such as `math.sqrt`, wrapped as long as any thread traces.

    For arguments of other threads, which are not symbolic, a wrapped function is the function itself. No
    lock is held while a module runs: it may wait for one of its own.
    """

    def __init__(self) -> None:
        self._lock, self._traces = Lock(), 0
        self._wrappers: list[_Wrapper] = []
        self._namespaces: dict[int, dict[str, Any]] = {}

    def __enter__(self) -> None:
        with self._lock:
            self._traces += 1
            for (_, name), namespace in (
                _wrapped_fns_to_patch.copy().items() if not self._wrappers else ()
            ):
                self._wrap(namespace, name)
            for wrapper in self._wrappers:
                wrapper.put()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        with self._lock:
            self._traces -= 1
            if not self._traces:
                for wrapper in self._wrappers:
                    wrapper.retire()
                self._wrappers.clear()
                self._namespaces.clear()

    def are_in_place(self) -> bool:
        """Return whether no other trace of this process has put functions back that it had wrapped."""
        with self._lock:
            return all(wrapper.is_in_place() for wrapper in self._wrappers)

    def wrap(self, namespace: dict[str, Any]) -> None:
        """Wrap the functions of `math` in a namespace."""
        with self._lock:
            if id(namespace) in self._namespaces:
                return
            self._namespaces[id(namespace)] = namespace
            for name, value in [*namespace.items()]:
                if name[:1] != "_" and callable(value) and id(_plain(value)) in _MATH_IDS:
                    self._wrap(namespace, name)

    def _wrap(self, namespace: dict[str, Any], name: str) -> None:
        self._wrappers.append(_Wrapper(namespace, name))
        self._wrappers[-1].put()


class _Wrapper:
    """Stands in a namespace for one of its functions, or for a builtin, and records symbolic calls."""

    def __init__(self, namespace: dict[str, Any], name: str) -> None:
        self._namespace, self._name, self._is_retired = namespace, name, False
        self._found = namespace.get(name)
        function = _plain(getattr(builtins, name) if self._found is None else self._found)
        record = _create_wrapped_func(function)

        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if self._is_retired:  # another trace had wrapped this, and has put it back
                self._take_away()
            return record(*args, **kwargs)

        self._function: Any = wrapper
        setattr(wrapper, _FX_MARK, True)
        setattr(wrapper, _FX_KEEPS, True)

    def is_in_place(self) -> bool:
        """Return whether the name means this wrapper."""
        return self._namespace.get(self._name) is self._function

    def put(self) -> None:
        """Put the wrapper in its place, in front of what is there now: a trace of others may have ended."""
        if not self.is_in_place():
            self._found = self._namespace.get(self._name)
            self._namespace[self._name] = self._function

    def retire(self) -> None:
        """Put the function back, now or when the trace that has wrapped this wrapper has ended."""
        self._is_retired = True
        self._take_away()

    def _take_away(self) -> None:
        if not self.is_in_place():
            return
        if self._found is None:
            del self._namespace[self._name]
        else:
            self._namespace[self._name] = self._found


def _plain(function: Any) -> Any:
    """Return a function that another trace may have wrapped."""
    while hasattr(function, _FX_MARK):
        function = function.__wrapped__
    return function


_MATH_IDS = {id(_plain(value)) for name, value in vars(math).items() if name[:1] != "_"}
_wrapped_functions = _WrappedFunctions()


_CONV_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class _LayerReader:
    """Converts a traced graph to layers."""

    def __init__(self, module: nn.Module) -> None:
        self._modules = dict(module.named_modules())
        stored = module.state_dict(keep_vars=True).keys()
        self._computed_buffers = {k: x for k, x in module.named_buffers() if k not in stored}
        self._layers: dict[str, Layer] = {}
        self._names: dict[fx.Node, str] = {}
        self._calls: dict[str, int] = {}

    def read(self, graph: fx.Graph) -> list[Layer]:
        """Return the layers of all nodes that are tensors."""
        for node in graph.nodes:
            if not is_scalar(node):
                self._add(node)
        return list(self._layers.values())

    def calls(self) -> dict[str, fx.Node]:
        """Return the nodes of the layers that were read, by name."""
        return {name: node for node, name in self._names.items()}

    def _add(self, node: fx.Node) -> None:
        inputs = dict.fromkeys(self._names[n] for n in node.all_input_nodes if n in self._names)
        name = self._name(node)
        for layer in self._describe(node, name, tuple(inputs)):
            self._layers[layer.name] = layer
            self._names[node] = layer.name

    def _describe(self, node: fx.Node, name: str, inputs: tuple[str, ...]) -> list[Layer]:
        """Return the layers of one node, in order."""
        if node.op == "placeholder":
            return [Layer(name=name, kind="input")]
        if node.op == "get_attr":
            return [Layer(name=name, kind="parameter")]
        if node.op == "output":
            return [Layer(name=name, kind="output", inputs=inputs)]
        if node.op == "call_module":
            module = self._modules[str(node.target)]
            ops: ChannelOps = (module_channel_op(module, len(inputs)),)
            if ops == OPAQUE and is_plain_convolution(module):
                ops, inputs = (ChannelOp("conv", groups=int(module.groups)),), inputs[:1]
        elif self._is_blur(node):
            ops, inputs = (ChannelOp("pointwise", dims=SPATIAL),), inputs[:1]
        else:
            ops = function_channel_ops(node, len(inputs))
        layers: list[Layer] = []
        for i, op in enumerate(ops):
            layers.append(
                Layer(
                    name=name if i == len(ops) - 1 else f"{name}:{i}",
                    kind=op.kind,
                    inputs=(layers[-1].name,) if layers else inputs,
                    groups=op.groups,
                    dims=op.dims,
                )
            )
        return [possible(layer) for layer in layers]  # some raise when the module runs

    def _is_blur(self, node: fx.Node) -> bool:
        """Return whether a convolution has one filter for every channel, which is no weight but computed.

        Of a network on the meta device nobody knows.
        """
        name = str(getattr(node.target, "__name__", ""))
        if node.op != "call_function" or name not in ("conv1d", "conv2d", "conv3d"):
            return False
        given = dict(zip(_CONV_ARGUMENTS, node.args, strict=False)) | node.kwargs
        weight = given.get("weight")
        if (
            not isinstance(weight, fx.Node)
            or weight.op != "get_attr"
            or given.get("bias") is not None
        ):
            return False
        filters = self._computed_buffers.get(str(weight.target))
        if filters is None or filters.is_meta or given.get("groups", 1) != len(filters):
            return False
        return bool((filters == filters[:1]).all())

    def _name(self, node: fx.Node) -> str:
        if node.op == "get_attr":
            return str(node.target)
        if node.op != "call_module":
            return f"%{node.name}"
        target = str(node.target)
        call = self._calls[target] = self._calls.get(target, -1) + 1
        return f"{target}#{call}" if call else target
