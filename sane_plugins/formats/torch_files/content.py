"""What a checkpoint holds, as plain mappings, lists and tensors: modules become their state dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from sane_plugins.errors import SourceError
from sane_plugins.formats.limits import require_tensor_count
from sane_plugins.formats.torch_files.inert_pickle import Inert
from sane_plugins.formats.torch_files.pickle_scan import Storage
from sane_plugins.formats.torch_files.record_tensors import RecordTensors

MAX_NESTING_DEPTH = 100  # of mappings, lists and objects
MAX_ENTRIES = 3_000_000  # of all mappings, lists and objects; a shared one counts for each object
MAX_MODULE_DEPTH = 200
MAX_ATTRIBUTES = 500_000  # of all modules together; a shared one counts under each of its names

_MODULE_PARTS = ("_parameters", "_buffers", "_modules")


class ContentBuilder:
    """Turns inert records into tensors, mappings and lists; `read_storage` returns the values of a key."""

    def __init__(
        self, path: Path, read_storage: Callable[[Storage], torch.UntypedStorage], nbytes: int
    ) -> None:
        self._path, self._nbytes = path, nbytes
        self._tensors = RecordTensors(path, read_storage, nbytes)
        self._plain: dict[int, Any] = {}
        self._entries = self._attributes = 0

    def plain(self, part: Any, depth: int = 0) -> Any:
        """Return a part of the content; an object is a mapping of its attributes, or a list of its parts."""
        if not isinstance(part, Inert | dict | list | tuple):
            return None if isinstance(part, Storage) else part
        if id(part) in self._plain:
            return self._plain[id(part)]
        if depth > MAX_NESTING_DEPTH:
            raise _nesting_error(self._path)
        tensor = self._tensors.of(part)
        if tensor is not None:
            return tensor
        if isinstance(part, Inert) and module_parts(part) is not None:
            return self._plain.setdefault(id(part), dict(self._state_dict(part)))
        children = _children(part)
        self._entries += len(children)
        if self._entries > MAX_ENTRIES:
            raise _size_error(self._path, f"its objects have more than {MAX_ENTRIES} entries")
        if isinstance(children, dict):
            named: dict[Any, Any] = {}
            self._plain[id(part)] = named  # before its entries: it may hold itself
            named.update((key, self.plain(value, depth + 1)) for key, value in children.items())
            return named
        listed: list[Any] = []
        self._plain[id(part)] = listed
        listed += [self.plain(value, depth + 1) for value in children]
        return listed

    def _state_dict(self, module: Inert) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors of a module tree as its state dict names and orders them.

        Raises `SourceError` for a tree that is too deep or too large; one that holds itself is.
        """
        pending: list[tuple[int, str, Any]] = [(0, "", module)]
        tensors = 0
        while pending:
            depth, name, part = pending.pop()
            tensor = self._tensors.of(part)
            if tensor is not None:
                require_tensor_count(self._path, tensors := tensors + 1, self._nbytes)
                yield name, tensor
            elif isinstance(part, Inert | dict | list | tuple):
                inner = module_parts(part) or _children(part)
                self._attributes += 1 + len(inner)
                if depth > MAX_MODULE_DEPTH or self._attributes > MAX_ATTRIBUTES:
                    raise _size_error(
                        self._path,
                        f"its modules are nested more than {MAX_MODULE_DEPTH} deep, or have more"
                        f" than {MAX_ATTRIBUTES} attributes",
                    )
                before = f"{name}." if name else ""
                pairs = inner.items() if isinstance(inner, dict) else enumerate(inner)
                pending += reversed([(depth + 1, f"{before}{key}", x) for key, x in pairs])


def module_parts(record: Any) -> dict[Any, Any] | None:
    """Return a module's parameters, the buffers of its state dict, and its modules; None for no module."""
    if not isinstance(record, Inert):
        return None
    for attributes in _attributes(record):
        parts = [x for x in map(attributes.get, _MODULE_PARTS) if isinstance(x, dict)]
        if len(parts) == len(_MODULE_PARTS):
            parameters, buffers, modules = parts
            told = attributes.get("_non_persistent_buffers_set")
            passing = {x for x in told if isinstance(x, str)} if isinstance(told, list) else set()
            kept = {key: x for key, x in buffers.items() if key not in passing}
            return {**parameters, **kept, **modules}
    return None


def _attributes(record: Inert) -> Iterator[dict[Any, Any]]:
    """Yield the mappings that an object was given: as its state, or by the function that makes it."""
    state = record.state if isinstance(record.state, tuple) else (record.state,)
    yield from (part for part in (*state, *record.args) if isinstance(part, dict))


def _children(
    part: Inert | dict[Any, Any] | list[Any] | tuple[Any, ...],
) -> dict[Any, Any] | list[Any] | tuple[Any, ...]:
    """Return what a container holds; of an object its attributes and items, else what it was made of."""
    if not isinstance(part, Inert):
        return part
    named = {key: x for attributes in _attributes(part) for key, x in attributes.items()}
    named |= {key: x for key, x in part.items if isinstance(key, str | int)}
    if not named:
        state = part.state if isinstance(part.state, list | tuple) else []
        return [*part.args, *state, *part.parts]
    return named | dict(enumerate(part.parts)) if part.parts else named


def _nesting_error(path: Path) -> SourceError:
    return _size_error(path, f"its content is nested more than {MAX_NESTING_DEPTH} deep")


def _size_error(path: Path, found: str) -> SourceError:
    return SourceError(
        path, found, "a state dict is needed", "save one with torch.save(module.state_dict(), path)"
    )
