"""Build networks by name: one of our families, or `package.module:function`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import signature
from types import ModuleType
from typing import Any

from torch import nn

from sane_plugins.architectures.families import ARCHITECTURES
from sane_plugins.architectures.names import FAMILIES, family_name
from sane_plugins.architectures.torchvision_import import import_torchvision
from sane_plugins.errors import SaneError, SourceError

_CLASS_COUNT_ARGUMENTS = ("classes", "num_classes", "n_classes")


def build(factory: Mapping[str, Any]) -> nn.Module:
    """Build a network from a zoo's description: `name`, and arguments of the function it names.

    Raises `SourceError` where it cannot be imported, does not take them, or returns something else.
    """
    name = str(factory["name"])
    arguments = {key: value for key, value in factory.items() if key != "name"}
    return _call_builder(name, _find_builder(name), arguments)


def build_by_name(name: str, classes: int | None) -> nn.Module:
    """Build a network, with `classes` where its function takes a class count. Raises as `build`."""
    function = _find_builder(name)
    accepted = [key for key in _CLASS_COUNT_ARGUMENTS if key in _parameters(name, function)]
    return _call_builder(
        name, function, {accepted[0]: classes} if accepted and classes is not None else {}
    )


def is_function_name(source: Any) -> bool:
    """Return whether a source looks like `package.module:function`."""
    module, colon, function = source.partition(":") if isinstance(source, str) else ("", "", "")
    return bool(colon) and all(x.isidentifier() for x in (*module.split("."), function))


def _find_builder(name: str) -> Callable[..., Any]:
    if family := family_name(name):
        return ARCHITECTURES[family]
    if not is_function_name(name):
        raise SourceError(
            name,
            "there is no such architecture",
            f"one of {', '.join(FAMILIES)} or package.module:function is needed",
            "check the name",
        )
    module, _, function = name.partition(":")
    try:
        builder: Callable[..., Any] = getattr(_import(module), function)
    except Exception as error:  # the user's own code, which may raise anything
        raise SourceError(
            name,
            f"it cannot be imported ({type(error).__name__}: {error})",
            "package.module:function must exist",
            "check the name, and that its folder is on PYTHONPATH or the current one",
        ) from error
    return builder


def _import(module: str) -> ModuleType:
    if module.partition(".")[0] == "torchvision":
        import_torchvision()  # also where its operators were built for another torch
    return import_module(module)


def _parameters(name: str, function: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return signature(function).parameters
    except (TypeError, ValueError) as error:
        raise SourceError(
            name,
            f"it cannot be called ({error})",
            "a function that builds the network is needed",
            "name that function",
        ) from error


def _call_builder(
    name: str, function: Callable[..., Any], arguments: Mapping[str, Any]
) -> nn.Module:
    parameters = _parameters(name, function)
    try:
        signature(function).bind(**arguments)
    except TypeError as error:
        raise SourceError(
            name,
            f"it does not take these arguments ({error})",
            f"it takes {', '.join(parameters) or 'none'}",
            "correct them, or name another function",
        ) from error
    try:
        module = function(**arguments)
    except SaneError:
        raise
    except Exception as error:  # the user's own code, which may raise anything
        given = f"with {', '.join(arguments)}" if arguments else "without arguments"
        raise SourceError(
            name,
            f"it raises {type(error).__name__}: {error}",
            f"it must work {given}",
            "correct them, or name another function",
        ) from error
    if not isinstance(module, nn.Module):
        raise SourceError(
            name,
            f"it returns {type(module).__name__}",
            "a torch.nn.Module is needed",
            "name the function that builds the network",
        )
    return module
