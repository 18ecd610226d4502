"""Copies of a plugin that carry the marker of another program's manager."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, isgeneratorfunction, signature
from types import FunctionType, MethodType, ModuleType
from typing import Any

from pluggy import HookimplMarker

from sane_plugins.plugins.installed import GROUP
from sane_plugins.plugins.validation import hook_functions


def copy_with_marker(
    plugin: Any,
    project: str,
    guard: Callable[..., Any] | None,
    not_given: Callable[[str], Mapping[str, Any]],
) -> ModuleType:
    """Return a copy of a plugin whose implementations carry the host's marker, with the plugin's own name.

    Each is named `PROJECT_HOOK`: some managers, such as pytest's, look at no other names. `not_given` returns
    the arguments of a hook that the host does not pass, and their values.
    """
    mark_impl = HookimplMarker(project)
    copy = ModuleType(str(getattr(plugin, "__name__", type(plugin).__name__)))
    for name, given, function in hook_functions(plugin):
        options = _as_optional(given, name)
        if guard is None:
            implementation = _copy_implementation(function)
        else:
            implementation = guard(options["specname"], options, function)
            _remove_markers(implementation)
            is_wrapper = bool(options["wrapper"] or options["hookwrapper"])
            options |= {"wrapper": is_wrapper, "hookwrapper": False}
        implementation = _fill(implementation, not_given(options["specname"]))
        target = getattr(implementation, "__func__", implementation)
        mark_impl(target, **options)
        setattr(copy, f"{project}_{name}", implementation)
    return copy


def copy_function(function: FunctionType) -> FunctionType:
    """Return the same function without its markers: two hosts in one process must not share them."""
    copy = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__doc__, copy.__kwdefaults__ = function.__doc__, function.__kwdefaults__
    # Decorators leave `__wrapped__` there, from which pluggy reads the arguments' names.
    copy.__dict__.update(vars(function))
    _remove_markers(copy)
    return copy


def _copy_implementation(function: Callable[..., Any]) -> Callable[..., Any]:
    owner = getattr(function, "__self__", None) if isinstance(function, MethodType) else None
    original: Any = getattr(function, "__func__", function)
    copy = copy_function(original)
    return copy if owner is None else MethodType(copy, owner)


def _fill(function: Callable[..., Any], not_given: Mapping[str, Any]) -> Callable[..., Any]:
    """Return an implementation that does without the arguments that its host does not pass.

    Their names are kept as `left_out`: `pick_arguments` passes them where we call it ourselves.
    """
    parameters = signature(function).parameters.values()
    needed = [x.name for x in parameters if x.default is Parameter.empty]
    filled = {name: value for name, value in not_given.items() if name in needed}
    if not filled:
        return function
    names = [name for name in needed if name not in filled]

    def arguments(values: tuple[Any, ...], by_name: Mapping[str, Any]) -> dict[str, Any]:
        return {**filled, **dict(zip(names, values, strict=False)), **by_name}

    call: Any
    if isgeneratorfunction(function):

        @wraps(function)
        def call(*values: Any, **by_name: Any) -> Any:
            return (yield from function(**arguments(values, by_name)))
    else:

        @wraps(function)
        def call(*values: Any, **by_name: Any) -> Any:
            return function(**arguments(values, by_name))

    # Releases of pluggy read the names from the signature, or from the code of what was wrapped.
    call.__wrapped__ = eval(f"lambda {', '.join(names)}: None")
    call.left_out = tuple(filled)
    filling: Callable[..., Any] = call
    return filling


def _as_optional(options: Any, name: str) -> dict[str, Any]:
    """Keep a plugin's options, and mark it optional so that hosts with other specifications accept it."""
    return {**options, "optionalhook": True, "specname": options["specname"] or name}


def _remove_markers(function: Any) -> None:
    for name in [name for name in vars(function) if name.startswith(GROUP)]:
        delattr(function, name)
