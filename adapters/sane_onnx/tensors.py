"""ONNX tensors as torch tensors and back, bit for bit, whatever the type."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, prod

import numpy as np
import torch
from onnx import TensorProto
from onnx.numpy_helper import to_array

from sane_onnx.external_data import ExternalFiles
from sane_plugins.errors import SourceError

FLOATS: Mapping[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
}
_OTHERS: Mapping[int, torch.dtype] = {
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.BOOL: torch.bool,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
}
# Two values in a byte, the first one in its lower half; read as torch's 8-bit integers.
_HALVES: Mapping[int, torch.dtype] = {TensorProto.INT4: torch.int8, TensorProto.UINT4: torch.uint8}
_DTYPES: Mapping[int, torch.dtype] = {**FLOATS, **_OTHERS, **_HALVES}
_DATA_FIELDS = (
    "float_data",
    "int32_data",
    "int64_data",
    "double_data",
    "uint64_data",
    "string_data",
)


def type_name(tensor: TensorProto) -> str:
    """Return ONNX's name of a tensor's type."""
    known = tensor.data_type in TensorProto.DataType.values()
    return TensorProto.DataType.Name(tensor.data_type) if known else f"type {tensor.data_type}"


def dtype_of(tensor: TensorProto) -> torch.dtype | None:
    """Return the torch type that holds a tensor's values; None for strings and exotic floats."""
    return _DTYPES.get(tensor.data_type)


def limits(tensor: TensorProto) -> tuple[int, int]:
    """Return the least and the greatest value of an integer type."""
    if tensor.data_type in _HALVES:
        return (-8, 7) if tensor.data_type == TensorProto.INT4 else (0, 15)
    info = torch.iinfo(_DTYPES[tensor.data_type])
    return info.min, info.max


def is_external(tensor: TensorProto) -> bool:
    """Tell whether a tensor's values lie in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL or tensor.external_data)


class StoredTensor:
    """A tensor of a model where it is kept: in the model file or in one beside it.

    `place` names it in errors. `pending` is what is to be written to another file.
    """

    pending: torch.Tensor | None = None

    def __init__(self, tensor: TensorProto, place: str, files: ExternalFiles) -> None:
        self.tensor, self.place, self.files = tensor, f"{place}, {tensor.name!r}", files
        self.shape, self.dtype = tuple(tensor.dims), dtype_of(tensor)

    @property
    def size(self) -> int:
        """Return the number of values that the shape promises."""
        return prod(self.shape) if min(self.shape, default=0) >= 0 else 0

    @property
    def _needed(self) -> int:
        if self.tensor.data_type in _HALVES:
            return ceil(self.size / 2)
        return self.size * (self.dtype.itemsize if self.dtype else 0)

    def require(self) -> None:
        """Raise `SourceError` where there are not as many values as the shape says."""
        if is_external(self.tensor):
            self._require_shape()
            self.files.require(self.tensor, self._needed)
        else:
            self.data()

    def data(self) -> bytes | bytearray:
        """Return the bytes as ONNX keeps them. Raises `SourceError` where they do not fit the shape."""
        self._require_shape()
        if self.pending is not None:
            return encoded(self.tensor, self.pending)
        if is_external(self.tensor):
            return self.files.read(self.tensor, self._needed)
        try:
            raw = self.tensor.HasField("raw_data")
            data: bytes = self.tensor.raw_data if raw else _packed(self.tensor, self._needed)
        except (ValueError, TypeError, OverflowError, NotImplementedError) as error:
            raise self._broken(str(error)) from error
        if len(data) != self._needed:
            raise self._broken(f"shape {self.shape} has {len(data)} bytes")
        return bytes(data)

    def read(self) -> torch.Tensor:
        """Return a copy in the tensor's own type; 4-bit integers as 8-bit ones.

        The bytes are read as they are: numpy has no bfloat16, and torch refuses what stands in for it.
        """
        data = self.data()
        if self.tensor.data_type in _HALVES:
            return _halves(data, self.tensor).reshape(self.shape)
        assert self.dtype is not None, "strings are never read"
        if not data:
            return torch.empty(self.shape, dtype=self.dtype)
        whole = data if isinstance(data, bytearray) else bytearray(data)
        return torch.frombuffer(whole, dtype=self.dtype).reshape(self.shape)

    def write(self, value: torch.Tensor) -> None:
        """Replace the values by those of a tensor of the same shape; the type stays."""
        if is_external(self.tensor):
            self.pending = value
        else:
            fill(self.tensor, encoded(self.tensor, value))

    def _require_shape(self) -> None:
        if min(self.shape, default=0) < 0:
            raise self._broken(f"its shape is {self.shape}")
        if self.dtype is None:
            raise self._broken(f"{type_name(self.tensor)} values cannot be read")

    def _broken(self, found: str) -> SourceError:
        return SourceError(
            self.place,
            f"the tensor is broken ({' '.join(found.split())})",
            "as many values as its shape says are needed",
            "copy or export the file again",
        )


def fill(tensor: TensorProto, data: bytes) -> None:
    """Replace whatever a tensor holds by these bytes."""
    for field in (*_DATA_FIELDS, "external_data", "data_location"):
        tensor.ClearField(field)
    tensor.raw_data = data


def encoded(tensor: TensorProto, value: torch.Tensor) -> bytes:
    """Return a value's bytes in the tensor's type."""
    flat = value.detach().to("cpu", _DTYPES[tensor.data_type]).reshape(-1)
    # A view as bytes needs steps of 1, which `contiguous` does not give a single value.
    flat = flat.clone(memory_format=torch.contiguous_format)
    array = flat.view(torch.uint8).numpy()
    if tensor.data_type in _HALVES:
        low, high = np.resize(array & 15, len(array) + len(array) % 2).reshape(-1, 2).T
        array = low | high << 4
    return array.tobytes()


def _halves(data: bytes | bytearray, tensor: TensorProto) -> torch.Tensor:
    packed = np.frombuffer(data, dtype=np.uint8)
    values = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[: prod(tensor.dims)]
    if tensor.data_type == TensorProto.INT4:
        values = (values.astype(np.int8) ^ 8) - 8
    return torch.from_numpy(values.copy())


def _packed(tensor: TensorProto, needed: int) -> bytes:
    """Return the bytes of values kept as numbers; shapes are held against them before anything grows."""
    kept = sum(len(getattr(tensor, field)) for field in _DATA_FIELDS)
    if not kept and needed:
        raise ValueError("it holds no values")
    if tensor.data_type in _HALVES:
        return bytes(number & 255 for number in tensor.int32_data)
    return bytes(to_array(tensor).tobytes()) if kept else b""
