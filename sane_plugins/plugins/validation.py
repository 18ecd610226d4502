"""What a plugin must be to be registered, and what its author should be told."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from inspect import Parameter
from typing import Any

from pluggy import PluginManager

from sane_plugins.errors import PluginError
from sane_plugins.plugins.installed import GROUP
from sane_plugins.plugins.problems import AnswerError, failure_of, one_line
from sane_plugins.plugins.requirements import require_no_coroutine

_FACTORY = "sane_plugin"
_PREFIX = "sane_"
_STARRED = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
_reader = PluginManager(GROUP)  # reads our markers


def require_supported(plugin: Any, name: str, version: tuple[int, int]) -> None:
    """Raise `PluginError` if a plugin's SANE_REQUIRES is above the version of our hooks, or no version."""
    required = getattr(plugin, "SANE_REQUIRES", (1, 0))
    if not isinstance(required, tuple | list) or [type(x) for x in required] != [int, int]:
        raise PluginError(
            f"plugin {name}",
            f"its SANE_REQUIRES is {one_line(repr(required))[:80]}",
            "two whole numbers are needed",
            f"write SANE_REQUIRES = {version}",
        )
    if tuple(required) > version:
        raise PluginError(
            f"plugin {name}",
            f"it requires hooks {required}",
            f"this version has {version}",
            "upgrade sane-plugins",
        )


def make_for_host(host: Any, plugin: Any) -> Any:
    """Return what a plugin's `sane_plugin(host)` makes for a host, or the plugin itself if it has none.

    Raises `AnswerError` for what cannot be called as a plugin.
    """
    factory = getattr(plugin, _FACTORY, None)
    made = plugin if factory is None else factory(host)
    require_no_coroutine(made)
    if made is None:
        raise AnswerError(f"it is None: {_FACTORY}(host) must return the object with the hooks")
    if made == object():  # a manager compares plugins, each with all others
        raise AnswerError("it says that it is equal to any object")
    for name, options, function in hook_functions(made):
        _require_callable_as_hook(made, name, options, function)
    return made


def hook_functions(plugin: Any) -> Iterator[tuple[str, Mapping[str, Any], Callable[..., Any]]]:
    """Yield the attribute, the options and the function of each hook that a plugin implements."""
    for name in dir(plugin):
        options = _reader.parse_hookimpl_opts(plugin, name)
        if options:
            yield name, options, getattr(plugin, name)


def require_arguments(plugin: Any, known: Callable[[str], Sequence[str] | None]) -> None:
    """Raise `AnswerError` for a hook that takes other arguments than are `known` of it by name.

    pluggy tells the first in words of its own, and calls the rest with their defaults alone.
    """
    for name, options, function in hook_functions(plugin):
        given = known(options.get("specname") or name)
        parameters, failure = failure_of(partial(_parameters, function))
        if given is None or failure is not None or not parameters:
            continue
        needed = [x for x in parameters if x.default is Parameter.empty and x.kind not in _STARRED]
        wrong = [x for x in needed if x.name not in given]
        if given and {x.name for x in parameters}.isdisjoint(given):  # it would be given nothing
            wrong = wrong or parameters
        listed = ", ".join(given) or "none"
        if wrong:
            asked = ", ".join(str(x.replace(annotation=Parameter.empty)) for x in wrong)
            raise AnswerError(
                f"its {name} takes '{asked}', and the arguments of that hook are {listed}: they are"
                " given by name, so call those that you use as the hook does"
            )
        if any(x.kind is Parameter.KEYWORD_ONLY for x in needed):
            raise AnswerError(f"its {name} has arguments behind a '*': write them without it")


def _parameters(function: Callable[..., Any]) -> list[Parameter]:
    return [*inspect.signature(function).parameters.values()]


def describe_oddities(plugin: Any, hooks: Collection[str]) -> list[tuple[str, str]]:
    """Return (topic, text) of what is no error, and probably a mistake, given the names of all hooks."""
    notes = []
    implemented = {name: opts.get("specname") or name for name, opts, _ in hook_functions(plugin)}
    for name, options, _ in hook_functions(plugin):
        hook = implemented[name]
        if hook not in hooks and not options.get("optionalhook"):
            notes.append(
                (hook, f"there is no hook {hook}, so it is never called{_hint(hook, hooks)}")
            )
    for name in dir(plugin):
        is_meant = name in hooks or bool(name.startswith(_PREFIX) and _hint(name, hooks))
        if is_meant and name not in implemented and name != _FACTORY and _is_function(plugin, name):
            notes.append((name, f"{name} is not marked with hookimpl, so it is never called"))
    if not implemented and not notes:
        notes.append(("hooks", "it implements no hook: mark its functions with hookimpl"))
    return notes


def _require_callable_as_hook(
    plugin: Any, name: str, options: Mapping[str, Any], function: Callable[..., Any]
) -> None:
    wraps = options.get("wrapper") or options.get("hookwrapper")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise AnswerError(f"it defines 'async def {name}', and hooks are plain functions")
    if inspect.isgeneratorfunction(function) and not wraps:
        raise AnswerError(f"{name} yields, and is not marked with hookimpl(wrapper=True)")
    if wraps and not inspect.isgeneratorfunction(function):
        raise AnswerError(
            f"{name} is marked as a wrapper and does not yield: mark it with hookimpl alone, or write"
            " 'answer = yield' and return the answer"
        )
    if isinstance(plugin, type) and inspect.isfunction(inspect.getattr_static(plugin, name)):
        raise AnswerError(
            f"it is the class {plugin.__name__}, and an object of it is needed: write"
            f" {_FACTORY} = {plugin.__name__} if it takes the host, or name an object"
        )


def _hint(name: str, hooks: Collection[str]) -> str:
    close = get_close_matches(name, sorted(hooks), n=1, cutoff=0.75)
    return f"; did you mean {close[0]}?" if close else ""


def _is_function(plugin: Any, name: str) -> bool:
    """Return whether an attribute is a function, without calling a property of the plugin."""
    value = inspect.getattr_static(plugin, name, None)
    return inspect.isroutine(value)
