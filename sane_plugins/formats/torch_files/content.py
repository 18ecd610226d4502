"""What a checkpoint holds, as plain mappings, lists and tensors: modules become their state dicts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from sane_plugins.errors import SourceError
from sane_plugins.formats.limits import require_shape, require_tensor_count
from sane_plugins.formats.torch_files.inert_pickle import Inert
from sane_plugins.formats.torch_files.pickle_scan import (
    PickledTensor,
    Storage,
    integers,
    pickled_tensor,
    torch_dtype,
)
from sane_plugins.formats.torch_files.pickled_arrays import ArrayStorages

MAX_NESTING_DEPTH = 100  # of mappings, lists and objects
MAX_ENTRIES = 3_000_000  # of all mappings, lists and objects; a shared one counts for each object
MAX_MODULE_DEPTH = 200
MAX_ATTRIBUTES = 500_000  # of all modules together; a shared one counts under each of its names

_MODULE_PARTS = ("_parameters", "_buffers", "_modules")
# Functions and classes that give the tensor that is their first argument.
_SAME_TENSOR = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
    "torch._utils._rebuild_device_tensor_from_numpy",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    "torch._utils._rebuild_xla_tensor",
}
_SUBCLASSES = {"torch._tensor._rebuild_from_type", "torch._tensor._rebuild_from_type_v2"}
_SPARSE = {"torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_sparse_csr_tensor"}
_COMPRESSED = {
    str(x): x for x in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
}
_SCHEMES = {
    f"torch.{name}": getattr(torch, name)
    for name in ("per_tensor_affine", "per_channel_affine", "per_channel_affine_float_qparams")
}


class ContentBuilder:
    """Turns inert records into tensors, mappings and lists.

    `read_storage` returns the values of a key; what is asked of it was checked against the file's size.
    """

    def __init__(
        self, path: Path, read_storage: Callable[[Storage], torch.UntypedStorage], nbytes: int
    ) -> None:
        self._path, self._read, self._nbytes = path, read_storage, nbytes
        self._arrays = ArrayStorages()
        self._plain: dict[int, Any] = {}
        self._tensors: dict[int, torch.Tensor | None] = {}
        self._entries = self._attributes = 0

    def plain(self, part: Any, depth: int = 0) -> Any:
        """Return a part of the content; an object is a mapping of its attributes, or a list of its parts."""
        if not isinstance(part, Inert | dict | list | tuple):
            return None if isinstance(part, Storage) else part
        if id(part) in self._plain:
            return self._plain[id(part)]
        if depth > MAX_NESTING_DEPTH:
            raise _nesting_error(self._path)
        tensor = self.tensor(part)
        if tensor is not None:
            return tensor
        if module_parts(part) is not None:
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
            tensor = self.tensor(part)
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

    def tensor(self, record: Any) -> torch.Tensor | None:
        """Return the tensor that a record stands for; None for any other record."""
        if not isinstance(record, Inert):
            return None
        if id(record) not in self._tensors:
            self._tensors[id(record)] = self._make(record)
        return self._tensors[id(record)]

    def _make(self, record: Inert) -> torch.Tensor | None:
        name, args = record.name, record.args
        found = pickled_tensor(record)
        if found is not None:
            storage, values = found.storage, self._read(found.storage)
            if values.nbytes() < storage.nbytes + storage.start * storage.dtype.itemsize:
                raise ValueError("a storage is cut")  # torch would lengthen it
            return self._strided(found, values)
        array = self._arrays.tensor(record)
        if array is not None:
            return self._strided(array, self._arrays[array.storage.key])
        if name in _SAME_TENSOR and args:
            return self.tensor(args[0])
        if name in _SUBCLASSES:
            tensor = self._make(Inert(args[0].name, args[2]))
            return tensor if tensor is None else self._with_parts(tensor, args[3:])
        if name in _SPARSE:
            return self._sparse(*args[:2])
        if name == "torch._utils._rebuild_meta_tensor_no_storage":
            return self._without_values(args[1], args[0])
        if name == "torch._utils._rebuild_wrapper_subclass":
            return self._without_values(args[2], args[1], f"tensors of {args[0].name} are not read")
        if name == "torch._utils._rebuild_nested_tensor":
            buffer = self.tensor(args[0])
            assert buffer is not None
            return _unread(buffer.to("meta"), "nested tensors are not read")
        return None

    def _strided(self, told: PickledTensor, storage: torch.UntypedStorage) -> torch.Tensor:
        offset = told.storage.start + told.offset
        if told.quantizer:
            return self._quantized(told, storage, offset)
        tensor = torch.empty(0, dtype=told.dtype).set_(storage, offset, told.shape, told.stride)
        tensor = torch.conj(tensor) if "conj" in told.flags else tensor
        return torch._neg_view(tensor) if "neg" in told.flags else tensor

    def _quantized(
        self, told: PickledTensor, storage: torch.UntypedStorage, offset: int
    ) -> torch.Tensor:
        scheme, scale, zero = told.quantizer[:3]
        numbers = [
            value if isinstance(value, int | float) else self._channel_values(value)
            for value in (scale, zero)
        ]
        typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=told.dtype, _internal=True)
        params = (_SCHEMES[scheme.name], *numbers, *told.quantizer[3:])
        return torch._utils._rebuild_qtensor(
            typed, offset, told.shape, told.stride, params, False, OrderedDict()
        )

    def _channel_values(self, values: Any) -> Any:
        """Return the scales or zero points of channels; old versions of torch wrote lists."""
        return values if isinstance(values, list) else self.tensor(values)

    def _sparse(self, layout: Any, data: Any) -> torch.Tensor:
        """Make a sparse tensor; raises `RuntimeError` where its indices do not fit."""
        kind = layout.args[0] if isinstance(layout, Inert) else layout.name
        *parts, size = data[:3] if kind == "torch.sparse_coo" else data[:4]
        size = integers(size)
        require_shape(self._path, "a sparse tensor", size)
        tensors = [self.tensor(part) for part in parts]
        if kind == "torch.sparse_coo":
            return torch.sparse_coo_tensor(*tensors, size, check_invariants=True)
        return torch.sparse_compressed_tensor(
            *tensors, size, layout=_COMPRESSED[kind], check_invariants=True
        )

    def _with_parts(self, tensor: torch.Tensor, state: Any) -> torch.Tensor:
        """Give a tensor without values those that its class makes it of, such as codes and scales."""
        told = next((part for part in state if isinstance(part, dict)), {})
        if tensor.is_meta:
            parts = {key: self.tensor(x) for key, x in told.items() if isinstance(x, Inert)}
            tensor.parts = {key: x for key, x in parts.items() if x is not None}  # type: ignore[attr-defined]
        return tensor

    def _without_values(self, shape: Any, dtype: Any, reason: str = "") -> torch.Tensor:
        shape = integers(shape)
        require_shape(self._path, "a tensor", shape)
        return _unread(torch.empty(shape, dtype=torch_dtype(dtype), device="meta"), reason)


def _unread(tensor: torch.Tensor, reason: str) -> torch.Tensor:
    """Return a tensor that says why it has no values."""
    tensor.unread_reason = reason  # type: ignore[attr-defined]
    return tensor


def module_parts(record: Any) -> dict[Any, Any] | None:
    """Return a module's parameters, the buffers of its state dict, and its modules; None for no module."""
    if not isinstance(record, Inert):
        return None
    for attributes in _attributes(record):
        parts = [attributes.get(name) for name in _MODULE_PARTS]
        if all(isinstance(part, dict) for part in parts):
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


def _children(part: Any) -> dict[Any, Any] | list[Any] | tuple[Any, ...]:
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
