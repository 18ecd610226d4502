"""Copies of a module and its submodules: one to look at, and one to change.

Attributes such as locks, files and generators forbid `copy.deepcopy`; here they are shared. Modules,
tensors, containers, and functions and plain objects that refer to a module are copied, so that no code
that a copy runs reaches the original through them.
"""

from __future__ import annotations

import copyreg
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn


def copy_module(module: nn.Module) -> nn.Module:
    """Return a copy that shares no tensor; what cannot be copied, such as a lock, is shared."""
    copied: nn.Module
    try:
        copied = deepcopy(module)
    except Exception:  # __deepcopy__ and __reduce__ of any attribute may raise anything
        copied = ModuleCopies(copy_parameter).of(module)
    return copied


def evaluation_copy(module: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode that shares the parameters, and nothing else that can be copied."""
    copied: nn.Module = ModuleCopies(in_evaluation=True).of(module)
    return copied


class ModuleCopies:
    """Copies values, each once; parameters are what `parameter` returns. `modules` are the copied modules."""

    def __init__(
        self,
        parameter: Callable[[nn.Parameter], nn.Parameter] = lambda parameter: parameter,
        *,
        in_evaluation: bool = False,
    ) -> None:
        self.modules: list[nn.Module] = []
        self._parameter, self._in_evaluation = parameter, in_evaluation
        # The original is kept beside its copy, so that no later value gets its id.
        self._copies: dict[int, tuple[Any, Any]] = {}

    def of(self, value: Any) -> Any:
        """Return the copy of a value; values of other types are shared."""
        if id(value) in self._copies:
            return self._copies[id(value)][1]
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, nn.Parameter):
            return self._keep(value, self._parameter(value))
        if isinstance(value, torch.Tensor):
            return self._keep(value, _clone(value))
        if type(value) in (dict, OrderedDict):
            copied = self._keep(value, type(value)())
            copied.update((key, self.of(part)) for key, part in value.items())
            return copied
        if type(value) is list:
            copied = self._keep(value, [])
            copied.extend(map(self.of, value))
            return copied
        if type(value) is set:
            return self._keep(value, set(value))
        if type(value) is tuple:
            return tuple(map(self.of, value))
        if isinstance(value, tuple) and (make := getattr(value, "_make", None)):  # a named tuple
            return make(map(self.of, value))
        if type(value) is partial:
            return partial(self.of(value.func), *self.of(value.args), **self.of(value.keywords))
        if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
            return MethodType(value.__func__, self.of(value.__self__))
        if isinstance(value, FunctionType) and any(map(_holds_module, value.__closure__ or ())):
            return self._keep(value, self._function(value))
        if _is_holder(value):
            copied = self._keep(value, object.__new__(type(value)))
            vars(copied).update({name: self.of(part) for name, part in vars(value).items()})
            return copied
        return value

    def _keep(self, value: Any, copied: Any) -> Any:
        self._copies[id(value)] = value, copied
        return copied

    def _module(self, module: nn.Module) -> nn.Module:
        copied: nn.Module = self._keep(module, object.__new__(type(module)))
        self.modules.append(copied)
        vars(copied).update({name: self.of(value) for name, value in vars(module).items()})
        for name in copyreg._slotnames(type(module)):  # type: ignore[attr-defined]
            if hasattr(module, name):
                object.__setattr__(copied, name, self.of(getattr(module, name)))
        if self._in_evaluation:
            vars(copied)["training"] = False
        return copied

    def _function(self, function: FunctionType) -> FunctionType:
        cells = (
            CellType(self.of(cell.cell_contents)) if _holds_module(cell) else cell
            for cell in function.__closure__ or ()
        )
        copied = FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            function.__defaults__,
            tuple(cells),
        )
        copied.__kwdefaults__ = function.__kwdefaults__
        vars(copied).update(vars(function))
        return copied


def _holds_module(cell: CellType) -> bool:
    try:
        return isinstance(cell.cell_contents, nn.Module)
    except ValueError:  # a variable that has no value yet
        return False


def _is_holder(value: Any) -> bool:
    """Return whether an object of an ordinary class has a module as attribute; none that ends anything."""
    kind: Any = type(value)
    if kind.__new__ is not object.__new__ or hasattr(kind, "__del__"):
        return False
    return any(isinstance(part, nn.Module) for part in getattr(value, "__dict__", {}).values())


def _clone(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def copy_parameter(parameter: nn.Parameter) -> nn.Parameter:
    """Return a parameter of its own with the same values."""
    return nn.Parameter(_clone(parameter), parameter.requires_grad)
