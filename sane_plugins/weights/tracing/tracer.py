"""A tracer of torch.fx that leaves the module, and traces of other threads, as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import ParameterProxy

from sane_plugins.runtime import drawing_from
from sane_plugins.weights.module_tensors.copies import ModuleCopies, copy_parameter
from sane_plugins.weights.tracing.wrapped_functions import wrapped_functions

_UNWRAPPED_ERROR = "must be real number, not Proxy"  # of a function of `math` that is not wrapped
_FOREIGN_ERROR = "module is not installed as a submodule"  # of an `fx.Tracer` that gets our calls


class _UnknownModuleError(Exception):
    """A module was called that is no submodule of the traced one."""


class Tracer(fx.Tracer):
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
        with wrapped_functions, drawing_from(torch.Generator()):
            for namespace in (function.__globals__, vars(math)):
                wrapped_functions.wrap(namespace)
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
        is_foreign = str(error) == _FOREIGN_ERROR or not wrapped_functions.are_in_place()
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
        wrapped_functions.wrap(namespace)
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
