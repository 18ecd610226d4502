"""The tensors and storages that a torch pickle describes; nothing is imported, called or allocated."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import IO, Any, NamedTuple

import torch

from sane_plugins.formats.torch_files.inert_pickle import (
    Global,
    Inert,
    InertUnpickler,
    PickleLimitError,
)

_TYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "QInt8": torch.qint8,
    "QUInt8": torch.quint8,
    "QInt32": torch.qint32,
    "QUInt4x2": torch.quint4x2,
    "QUInt2x4": torch.quint2x4,
    "Untyped": torch.uint8,
}
_TORCH_TYPES = {f"torch.{k}": x for k, x in vars(torch).items() if isinstance(x, torch.dtype)}
_REBUILD_FUNCTIONS = {
    f"torch._utils._rebuild_{kind}" for kind in ("tensor", "tensor_v2", "tensor_v3", "qtensor")
}


# They are given a function as above, and its arguments.
SUBCLASS_FUNCTIONS = {
    "torch._tensor._rebuild_from_type",
    "torch._tensor._rebuild_from_type_v2",
}


class Storage(NamedTuple):
    """A storage of the file: its key, type, number of values, and the value of the key that it begins at."""

    key: str
    dtype: torch.dtype
    size: int
    start: int = 0

    @property
    def nbytes(self) -> int:
        """Return the size in bytes."""
        return self.size * self.dtype.itemsize

    @property
    def room(self) -> int:
        """Return the number of values; some quantised types pack two or four into a byte."""
        return self.size * {torch.quint4x2: 2, torch.quint2x4: 4}.get(self.dtype, 1)


@dataclass(frozen=True)
class PickledTensor:
    """A tensor as its pickle describes it; `quantizer` holds scheme, scales and zero points.

    `flags` names the lazy operations that are still to be applied: `conj` and `neg`.
    """

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    quantizer: tuple[Any, ...] = ()
    flags: frozenset[str] = frozenset()

    @property
    def count(self) -> int:
        """Return the number of values."""
        return prod(self.shape)

    @property
    def end(self) -> int:
        """Return the index after its last value, in values of the storage."""
        if not self.count:
            return 0
        return (
            self.offset + 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        )


class Scan(InertUnpickler):
    """A torch pickle's content as inert records; `storages` holds the storages that they refer to."""

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self.storages: dict[Storage, None] = {}
        super().__init__(stream, most)

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage, or the class of a module, that a persistent id refers to."""
        if pid[0] == "module":  # of torch's legacy form, with its source
            return pid[1]
        _, kind, key, _, count = pid[:5]
        dtype = _TYPES[kind.name.rpartition(".")[2].removesuffix("Storage")]
        if not (isinstance(key, str) and isinstance(count, int) and count >= 0):
            raise PickleLimitError("no storage")
        storage = Storage(key, dtype, count)
        self.storages[storage] = None
        if len(pid) > 5 and pid[5] is not None:
            return _part(storage, *pid[5][1:])
        return storage

    def tensors(self) -> Iterator[tuple[Inert, PickledTensor]]:
        """Yield every record that rebuilds a tensor, and the tensor it describes."""
        for record in self.made:
            if (found := pickled_tensor(record)) is not None:
                yield record, found


def _part(storage: Storage, start: int, count: int) -> Storage:
    """Return a part of a storage, which old versions of torch wrote for views."""
    _nonnegative_integers((start, count))
    if start + count > storage.size:
        raise ValueError("a part is larger than the whole")
    return storage._replace(size=count, start=start)


def pickled_tensor(record: Any) -> PickledTensor | None:
    """Return the tensor that an inert record describes; None for any other record.

    Raises `ValueError` or `TypeError` for a malformed record.
    """
    if not isinstance(record, Inert):
        return None
    if record.name in _REBUILD_FUNCTIONS:
        return _rebuilt(record, record.args)
    if record.name in SUBCLASS_FUNCTIONS and isinstance(record.args[0], Global):
        return pickled_tensor(Inert(record.args[0].name, record.args[2]))
    if re.fullmatch(r"torch\.(cuda\.)?\w*Tensor", record.name) and _is_old_state(record.state):
        return _rebuilt(record, record.state)
    return None


def _is_old_state(state: Any) -> bool:
    """Tell whether a state is what the first versions of torch gave a tensor."""
    return isinstance(state, tuple) and len(state) == 4 and isinstance(state[0], Storage)


def _rebuilt(record: Inert, args: tuple[Any, ...]) -> PickledTensor:
    storage, offset, shape, stride = args[:4]
    if not isinstance(storage, Storage):
        raise ValueError("no storage")
    dtype = storage.dtype
    quantizer: tuple[Any, ...] = ()
    if record.name.endswith("_v3"):
        dtype = torch_dtype(args[6])
        size, start = (n * storage.dtype.itemsize // dtype.itemsize for n in storage[2:])
        storage = Storage(storage.key, dtype, size, start)
    elif record.name.endswith("qtensor"):
        quantizer = tuple(args[4])
    shape, stride = integers(shape), integers(stride)
    _nonnegative_integers((offset,))
    if len(shape) != len(stride):
        raise ValueError("no tensor")
    flags = _flags(args[7:8] if record.name.endswith("_v3") else args[6:7])
    return PickledTensor(
        storage, dtype, offset, shape, stride, quantizer, frozenset() if quantizer else flags
    )


def _flags(metadata: tuple[Any, ...]) -> frozenset[str]:
    told = metadata[0] if metadata and isinstance(metadata[0], dict) else {}
    return frozenset(name for name in ("conj", "neg") if told.get(name) is True)


def torch_dtype(name: Any) -> torch.dtype:
    """Return the type that a pickle names. Raises `ValueError` where it is none."""
    if not isinstance(name, Global) or name.name not in _TORCH_TYPES:
        raise ValueError("no type")
    return _TORCH_TYPES[name.name]


def integers(numbers: Any) -> tuple[int, ...]:
    """Return the non-negative integers of a tuple, a list or a pickled torch.Size."""
    return _nonnegative_integers(numbers.args[0] if isinstance(numbers, Inert) else numbers)


def _nonnegative_integers(numbers: Any) -> tuple[int, ...]:
    if not all(isinstance(number, int) and 0 <= number < 2**63 for number in numbers):
        raise ValueError("no sizes")
    return tuple(numbers)
