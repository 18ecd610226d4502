"""Scan torch pickles without running them: every class and function becomes an inert record.

Used to check a checkpoint before torch loads it, and to read TorchScript archives, whose classes cannot be
imported. Nothing is imported or called, and no tensor is allocated.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, NamedTuple

import torch

STEPS = 3_000_000  # opcodes of one pickle
FREE_STEPS = 500_000  # however small the file is; more need
BYTES_PER_STEP = 16  # of the file each: a tensor takes some forty steps, and a KiB on average
CLASSES = 20_000  # names of classes and functions in one pickle
MAX_TUPLE_DEPTH = 100

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
_REBUILD_FUNCTIONS = {
    f"torch._utils._rebuild_{kind}" for kind in ("tensor", "tensor_v2", "tensor_v3", "qtensor")
}
_TUPLE_OPCODES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}


class PickleLimitError(Exception):
    """A pickle exceeds a limit."""


class Storage(NamedTuple):
    """A storage of the file: its key, type and number of values."""

    key: str
    dtype: torch.dtype
    size: int

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
    """A tensor as its pickle describes it; `quantizer` holds scheme, scales and zero points."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    quantizer: tuple[Any, ...] = ()

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


class Inert:
    """A stand-in for a pickled object: the arguments it was called with, its items and its state."""

    __slots__ = ("args", "items", "state")
    args: tuple[Any, ...]
    items: list[Any]
    state: Any
    name: ClassVar[str] = ""
    made: ClassVar[list[Inert]]

    def __new__(cls, *args: Any) -> Inert:  # noqa: D102
        self = object.__new__(cls)
        self.args, self.state, self.items = args, None, []
        cls.made.append(self)
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def extend(self, values: Any) -> None:  # noqa: D102
        self.items.extend(values)

    def append(self, value: Any) -> None:  # noqa: D102
        self.items.append(value)


class Scan(pickle.Unpickler):
    """A pickle's content as inert records; `made` lists them, `storages` the storages they refer to.

    `modules` names the classes of modules that torch's legacy format holds as a whole.
    """

    def __init__(self, data: bytes, most: int) -> None:
        _check_opcodes(data, most)
        super().__init__(io.BytesIO(data))
        self.made: list[Inert] = []
        self.storages: dict[Storage, None] = {}
        self.modules: list[str] = []
        self._classes: dict[str, type] = {"collections.OrderedDict": OrderedDict}
        self.content = self.load()

    def find_class(self, module: str, name: str) -> type:
        """Return a class of inert records, whatever the name."""
        name = f"{module}.{name}"
        if name not in self._classes:
            if len(self._classes) >= CLASSES:
                raise PickleLimitError("too many classes")
            self._classes[name] = type(
                "Inert", (Inert,), {"name": name, "made": self.made, "__slots__": ()}
            )
        return self._classes[name]

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage, or the class of a module, that a persistent id refers to."""
        if pid[0] == "module":
            self.modules.append(pid[1].name)
            return pid[1]
        _, kind, key, _, count = pid[:5]
        dtype = _TYPES[kind.name.rpartition(".")[2].removesuffix("Storage")]
        if not (isinstance(key, str) and isinstance(count, int) and count >= 0):
            raise PickleLimitError("no storage")
        storage = Storage(key, dtype, count)
        self.storages[storage] = None
        return storage

    def tensors(self) -> Iterator[tuple[Inert, PickledTensor]]:
        """Yield every record that rebuilds a tensor, and the tensor it describes."""
        for record in self.made:
            if (found := pickled_tensor(record)) is not None:
                yield record, found


def pickled_tensor(record: Any) -> PickledTensor | None:
    """Return the tensor that an inert record describes; None for any other record.

    Raises `ValueError` or `TypeError` for a malformed record.
    """
    if not isinstance(record, Inert) or record.name not in _REBUILD_FUNCTIONS:
        return None
    storage, offset, shape, stride = record.args[:4]
    dtype, quantizer = storage.dtype, ()
    if record.name.endswith("_v3"):
        dtype = getattr(torch, record.args[6].name.removeprefix("torch."))
        storage = Storage(storage.key, dtype, storage.size // dtype.itemsize)
    elif record.name.endswith("qtensor"):
        quantizer = record.args[4]
    shape, stride = _nonnegative_integers(shape), _nonnegative_integers(stride)
    _nonnegative_integers((offset,))
    if len(shape) != len(stride) or not isinstance(storage, Storage):
        raise ValueError("no tensor")
    return PickledTensor(storage, dtype, offset, shape, stride, tuple(quantizer))


def _nonnegative_integers(numbers: Any) -> tuple[int, ...]:
    """Return the non-negative integers of a tuple or a pickled torch.Size."""
    numbers = numbers.args[0] if isinstance(numbers, Inert) else numbers
    if not all(isinstance(number, int) and 0 <= number < 2**63 for number in numbers):
        raise ValueError("no sizes")
    return tuple(numbers)


def step_limit(nbytes: int) -> int:
    """Return how many opcodes the pickle of a file of that size may have."""
    return min(STEPS, FREE_STEPS + nbytes // BYTES_PER_STEP)


def pickle_end(data: Any, most: int) -> int:
    """Read a pickle's opcodes from the current position; return where the next pickle starts."""
    for steps, _ in enumerate(pickletools.genops(data)):
        if steps > most:
            raise PickleLimitError("too many steps")
    return int(data.tell())


def _check_opcodes(data: bytes, most: int) -> None:
    """Raise for too many opcodes, invalid memo indices, and tuples so deep that hashing one crashes."""
    stack: list[int | None] = []  # nesting depth of tuples; None is a mark
    memo: dict[Any, int | None] = {}
    for steps, (op, arg, _) in enumerate(pickletools.genops(data)):
        name = op.name
        if steps > most or ("PUT" in name and int(arg or 0) > steps) or name == "FROZENSET":
            raise PickleLimitError("too many steps, or too far places")
        if name.endswith("PUT") or name == "MEMOIZE":
            memo[len(memo) if arg is None else arg] = stack[-1]
            continue
        operands = _pop_operands(stack, op)
        if name in _TUPLE_OPCODES:
            depth = 1 + max((item or 0 for item in operands), default=0)
            if depth > MAX_TUPLE_DEPTH:
                raise PickleLimitError("too deep")
            stack.append(depth)
        elif name.endswith("GET"):
            stack.append(memo[arg])
        elif name == "DUP":
            stack += operands * 2
        else:
            stack += [None if kind is pickletools.markobject else 0 for kind in op.stack_after]


def _pop_operands(stack: list[int | None], op: pickletools.OpcodeInfo) -> list[int | None]:
    """Pop an opcode's operands from the stack, down to the last mark where it takes one."""
    operand_types = op.stack_before
    count = len(operand_types)
    operands: list[int | None] = []
    if pickletools.markobject in operand_types:
        while (item := stack.pop()) is not None:
            operands.append(item)
        count = operand_types.index(pickletools.markobject)
    if count:
        operands += stack[-count:]
        del stack[-count:]
    return operands
