"""Functions that a trace records as one step, wrapped as long as any thread traces."""

from __future__ import annotations

import builtins
import math
from functools import wraps
from threading import Lock
from types import TracebackType
from typing import Any

from torch.fx._symbolic_trace import (
    _create_wrapped_func,
    _wrapped_fns_to_patch,
)

_FX_MARK = "_Patcher__fx_already_patched"  # of what `fx.Tracer` puts in place of functions
_FX_KEEPS = "__fx_already_patched"  # of what it leaves in place and never puts back later


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
wrapped_functions = _WrappedFunctions()
