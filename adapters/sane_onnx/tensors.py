"""ONNX tensors as torch tensors and back, bit for bit, whatever the type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import torch
from onnx import ModelProto, TensorProto
from onnx.numpy_helper import to_array

from sane_plugins.errors import SourceError

FLOATS: Mapping[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32, TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16, TensorProto.BFLOAT16: torch.bfloat16,
}  # fmt: skip
_OTHERS: Mapping[int, torch.dtype] = {
    TensorProto.INT8: torch.int8, TensorProto.INT16: torch.int16, TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64, TensorProto.UINT8: torch.uint8, TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32, TensorProto.UINT64: torch.uint64, TensorProto.BOOL: torch.bool,
    TensorProto.COMPLEX64: torch.complex64, TensorProto.COMPLEX128: torch.complex128,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn, TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
}  # fmt: skip
_DTYPES: Mapping[int, torch.dtype] = {**FLOATS, **_OTHERS}
_DATA_FIELDS = (
    "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data",
)  # fmt: skip


def type_name(tensor: TensorProto) -> str:
    """Return ONNX's name of a tensor's type."""
    known = tensor.data_type in TensorProto.DataType.values()
    return TensorProto.DataType.Name(tensor.data_type) if known else f"type {tensor.data_type}"


def has_torch_type(tensor: TensorProto) -> bool:
    """Tell whether torch has this type; strings and 4-bit numbers it has not."""
    return tensor.data_type in _DTYPES


def to_torch(tensor: TensorProto, place: str) -> torch.Tensor:
    """Return a copy in the tensor's own type. Raises `SourceError` where the data do not fit the shape.

    The bytes are read as they are: numpy has no bfloat16, and torch refuses the types that stand in.
    """
    dtype, shape = _DTYPES[tensor.data_type], tuple(tensor.dims)
    needed = prod(shape) * dtype.itemsize
    try:
        data = tensor.raw_data if tensor.HasField("raw_data") else _packed(tensor, needed)
    except (ValueError, TypeError, OverflowError, NotImplementedError) as error:
        raise _broken(f"{place}, {tensor.name!r}", str(error)) from error
    if len(data) != needed or min(shape, default=0) < 0:
        raise _broken(f"{place}, {tensor.name!r}", f"shape {shape} has {len(data)} bytes")
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def require_whole(tensor: TensorProto, place: str) -> None:
    """Raise `SourceError` where a tensor does not hold as many values as its shape says."""
    to_torch(tensor, place)


def assign(tensor: TensorProto, value: torch.Tensor) -> None:
    """Replace a tensor's values by those of a tensor of the same shape; its type stays."""
    flat = value.detach().to("cpu", _DTYPES[tensor.data_type]).reshape(-1)
    # A view as bytes needs steps of 1, which `contiguous` does not give a single value.
    flat = flat.clone(memory_format=torch.contiguous_format)
    for field in _DATA_FIELDS:
        tensor.ClearField(field)
    tensor.raw_data = flat.view(torch.uint8).numpy().tobytes()


class OnnxTensors(Mapping[str, torch.Tensor]):
    """The tensors of one model, converted when they are asked for. Keeps the model to write it back."""

    def __init__(self, model: ModelProto, found: Mapping[str, TensorProto], place: str) -> None:
        self.model, self._found, self._place = model, found, place

    def __getitem__(self, key: str) -> torch.Tensor:
        return to_torch(self._found[key], self._place)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def _packed(tensor: TensorProto, needed: int) -> bytes:
    """Return the bytes of values kept as numbers; shapes are held against them before anything grows."""
    kept = sum(len(getattr(tensor, field)) for field in _DATA_FIELDS)
    if not kept and needed:
        raise ValueError("it holds no values")
    return bytes(to_array(tensor).tobytes()) if kept else b""


def _broken(place: str, found: str) -> SourceError:
    return SourceError(
        place, f"the tensor is broken ({found})", "as many values as its shape says are needed",
        "copy or export the file again",
    )  # fmt: skip
