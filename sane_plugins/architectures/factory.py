"""Build networks by name: one of our families, or `package.module:function`.

Names come from users, who mean what they type, and from files, which must not decide what code runs: a
`Trust` says which functions may be called. Our families and torchvision's registered builders always may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from inspect import signature
from types import ModuleType
from typing import Any

from torch import nn

from sane_plugins.architectures.families import ARCHITECTURES
from sane_plugins.architectures.folder_import import is_installed, modules_in
from sane_plugins.architectures.names import FAMILIES, family_name
from sane_plugins.architectures.photo_networks import PHOTO_ARCHITECTURES
from sane_plugins.architectures.size_limit import Size, SizeLimit
from sane_plugins.architectures.torchvision_import import import_torchvision
from sane_plugins.architectures.trust import (
    FULL_TRUST,
    NO_TRUST,
    Trust,
    describe_call,
    distrusted,
    is_function_name,
)
from sane_plugins.errors import SaneError, SourceError, first_line

_LIBRARY = "torchvision.models:"  # what `zoo add` writes for torchvision:NAME
_CLASS_COUNT_ARGUMENTS = ("classes", "num_classes", "n_classes")


def build(
    factory: Mapping[str, Any], trust: Trust = NO_TRUST, *, most: Size | None = None
) -> nn.Module:
    """Build a network from a zoo's description: `name`, and arguments of the function it names.

    A function that is neither ours nor a registered builder of torchvision must be in `trust`. With `most`,
    ours and torchvision's are refused before they take memory for more than that. Raises
    `SourceError` where it may not be called, does not take the arguments, or returns something else.
    """
    call = _prepare(factory, trust)
    if most is None or trust.allows(call.name):
        return call()
    with SizeLimit(call.name, most):
        return call()


def build_by_name(name: str, classes: int | None, trust: Trust = FULL_TRUST) -> nn.Module:
    """Build a network, with `classes` where its function takes a class count. Raises as `build`."""
    function = _find_builder({"name": name}, trust, name)
    argument = _class_count_argument(name, function)
    arguments = {argument: classes} if argument and classes is not None else {}
    return _Call(name, function, arguments)()


def call_anew(function: Callable[[], nn.Module]) -> nn.Module:
    """Return the network that a function builds, which is called again for each draw of its weights.

    Raises `SourceError` where it raises, or returns something else.
    """
    called = function.func if isinstance(function, partial) else function
    name = str(getattr(called, "__qualname__", type(called).__name__))
    try:
        module = function()
    except SaneError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code, which may raise anything
        raise SourceError(
            name,
            f"it raised {type(error).__name__}: {first_line(error)}",
            "it must build the network anew each time that it is called, without arguments",
            "repair it, or give another function",
        ) from error
    return _require_module(name, module)


def class_count_argument(name: str, trust: Trust = FULL_TRUST) -> str | None:
    """Return the argument by which a function is told the class count; None where it has none."""
    return _class_count_argument(name, _find_builder({"name": name}, trust, name))


def require_trusted(factory: Mapping[str, Any], trust: Trust, place: object) -> None:
    """Raise `SourceError` about `place` for a factory without a name, or whose function may not be called."""
    name = factory.get("name")
    if not isinstance(name, str):
        raise SourceError(
            place,
            f"its factory names {'no function' if name is None else repr(name)[:80]}",
            "the name of the function that builds it is needed",
            "add it again with --factory package.module:function",
        )
    if not (family_name(name) or trust.allows(name) or _registered(name)):
        raise distrusted(factory, place)


@dataclass(frozen=True)
class _Call:
    """A function that builds a network, and its arguments."""

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any]

    def __call__(self) -> nn.Module:
        return _call_builder(self.name, self.function, self.arguments)


def _prepare(factory: Mapping[str, Any], trust: Trust) -> _Call:
    place = factory.get("name", "factory")
    function = _find_builder(factory, trust, place)
    arguments = {key: value for key, value in factory.items() if key != "name"}
    name = str(factory["name"])
    if not trust.allows(name) and _registered(name):
        if arguments.get("weights") is not None:
            raise SourceError(
                describe_call(factory),
                "its weights would be downloaded",
                "the weights are those of the file",
                f"leave weights out, or add --factory {name}",
            )
        arguments["weights"] = None  # given, so that no older argument is taken for it
    return _Call(name, function, arguments)


def _find_builder(factory: Mapping[str, Any], trust: Trust, place: object) -> Callable[..., Any]:
    require_trusted(factory, trust, place)
    name = str(factory["name"])
    if family := family_name(name):
        return {**ARCHITECTURES, **PHOTO_ARCHITECTURES}[family]
    if not trust.allows(name):
        builder: Callable[..., Any] = _library().get_model_builder(_library_name(name))
        return builder
    if not is_function_name(name):
        raise SourceError(
            name,
            "there is no such architecture",
            f"one of {', '.join(FAMILIES)} or package.module:function is needed",
            "check the name",
        )
    module, _, function = name.partition(":")
    try:
        # What is installed imports nothing from the folder: it probes for modules that it can do without.
        with modules_in(None if is_installed(module) else trust.folder):
            imported = _import(module)
    except (Exception, SystemExit) as error:  # the user's own code, which may raise anything
        raise SourceError(
            name,
            f"it cannot be imported ({type(error).__name__}: {error})",
            "package.module:function must exist",
            f"write {module.removesuffix('.py')}:{function}"
            if module.endswith(".py")
            else "check the name, and that its folder is on PYTHONPATH or the current one",
        ) from error
    if not hasattr(imported, function):
        raise SourceError(
            name,
            f"{getattr(imported, '__file__', None) or module} has no '{function}'",
            "package.module:function must exist",
            "check the name; what is installed comes before the current folder",
        )
    return getattr(imported, function)  # type: ignore[no-any-return]


def _registered(name: str) -> bool:
    """Return whether a name is that of a builder which torchvision lists among its models."""
    return name.startswith(_LIBRARY) and _library_name(name) in _library().list_models(
        module=_library()
    )


def _library() -> Any:
    return import_torchvision().models


def _library_name(name: str) -> str:
    return name.removeprefix(_LIBRARY)


def _import(module: str) -> ModuleType:
    if module.partition(".")[0] == "torchvision":
        import_torchvision()  # also where its operators were built for another torch
    return import_module(module)


def _class_count_argument(name: str, function: Callable[..., Any]) -> str | None:
    parameters = _parameters(name, function)
    return next((key for key in _CLASS_COUNT_ARGUMENTS if key in parameters), None)


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
    except (Exception, SystemExit) as error:  # the user's own code, which may raise anything
        given = f"with {', '.join(arguments)}" if arguments else "without arguments"
        raise SourceError(
            name,
            f"it raises {type(error).__name__}: {first_line(error)}",
            f"it must work {given}",
            "put the folder of what it imports on PYTHONPATH"
            if isinstance(error, ImportError)
            else "correct them, or name another function",
        ) from error
    return _require_module(name, module)


def _require_module(name: str, module: object) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise SourceError(
            name,
            f"it returns {type(module).__name__}",
            "a torch.nn.Module is needed",
            "name the function that builds the network",
        )
    return module
