"""`TensorProto` to torch tensor and back, bit for bit, for every type that torch has."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, prod

import numpy as np
import torch
from onnx import TensorProto
from onnx.numpy_helper import to_array

from sane_onnx.model_file.external_data import ExternalFiles
from sane_onnx.model_file.limits import shape_problem
from sane_plugins.errors import SourceError


def _names() -> list[str]:
    names: list[str] = TensorProto.DataType.keys()
    return names


def _kind(name: str) -> int:
    """Return the number of a type, which versions of onnx before the type lack; then one that no type has."""
    return TensorProto.DataType.Value(name) if name in _names() else -len(name)


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
# Several values per byte, the low bits first; read as torch's 8-bit integers.
_SMALL_INTEGERS: Mapping[int, torch.dtype] = {
    TensorProto.INT4: torch.int8,
    TensorProto.UINT4: torch.uint8,
    _kind("INT2"): torch.int8,
    _kind("UINT2"): torch.uint8,
}
# Read as 8-bit floats, which hold every value of theirs: sign, and eight numbers.
_FOUR_BIT_FLOATS: Mapping[int, torch.dtype] = {_kind("FLOAT4E2M1"): torch.float8_e4m3fn}
_FOUR_BIT_NUMBERS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_PACKED: Mapping[int, torch.dtype] = {**_SMALL_INTEGERS, **_FOUR_BIT_FLOATS}
_POWERS_OF_TWO: Mapping[int, torch.dtype] = {_kind("FLOAT8E8M0"): torch.float8_e8m0fnu}
_DTYPES: Mapping[int, torch.dtype] = {**FLOATS, **_OTHERS, **_POWERS_OF_TWO, **_PACKED}
_NUMBERS_OF_OTHER_KINDS = (torch.bool, torch.complex64, torch.complex128)
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


def torch_dtype(kind: int) -> torch.dtype | None:
    """Return the torch type that holds numbers of an ONNX type, if there is one."""
    return _DTYPES.get(kind)


def dtype_of(tensor: TensorProto) -> torch.dtype | None:
    """Return the torch type that holds a tensor's values; None for strings and exotic floats."""
    return _DTYPES.get(tensor.data_type)


def integer_range(tensor: TensorProto) -> tuple[int, int]:
    """Return the smallest and the largest value of an integer type."""
    if tensor.data_type in _SMALL_INTEGERS:
        count = 2 ** bits_of(tensor)
        is_signed = _SMALL_INTEGERS[tensor.data_type] == torch.int8
        return (-count // 2, count // 2 - 1) if is_signed else (0, count - 1)
    info = torch.iinfo(_DTYPES[tensor.data_type])
    return info.min, info.max


def bits_of(tensor: TensorProto) -> int:
    """Return how many bits a stored value takes; 0 for a type that torch lacks."""
    if tensor.data_type in _PACKED:
        return 2 if type_name(tensor) in ("INT2", "UINT2") else 4
    dtype = dtype_of(tensor)
    return 8 * dtype.itemsize if dtype is not None else 0


def is_external(tensor: TensorProto) -> bool:
    """Return whether a tensor's values lie in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL or tensor.external_data)


class StoredTensor:
    """A `TensorProto` whose values are in the model file or in an external one.

    `place` names it in errors. `pending` are new values for an external file, not written yet.
    """

    pending: torch.Tensor | None = None

    def __init__(self, tensor: TensorProto, place: str, files: ExternalFiles) -> None:
        self.tensor, self.place, self.files = tensor, f"{place}, {tensor.name!r}", files
        self.shape, self.dtype = tuple(tensor.dims), dtype_of(tensor)

    @property
    def size(self) -> int:
        """Return the number of values according to the shape."""
        return prod(self.shape) if min(self.shape, default=0) >= 0 else 0

    @property
    def bits(self) -> int:
        """Return how many bits a value takes."""
        return bits_of(self.tensor)

    @property
    def is_quantized_type(self) -> bool:
        """Return whether these are integers or small floats, of which weights may be made."""
        is_other = self.dtype in (*FLOATS.values(), *_NUMBERS_OF_OTHER_KINDS)
        return self.dtype is not None and not is_other and self.size > 0

    @property
    def is_wide(self) -> bool:
        """Return whether the type is one of those that hold indices and sizes too."""
        return self.bits >= 32

    @property
    def is_byte(self) -> bool:
        """Return whether these are unsigned bytes, in which numbers of fewer bits may be packed."""
        return self.tensor.data_type == TensorProto.UINT8

    @property
    def _byte_count(self) -> int:
        return ceil(self.size * self.bits / 8)

    def require(self) -> None:
        """Raise `SourceError` where the number of values does not match the shape."""
        if is_external(self.tensor):
            self._require_shape()
            self.files.require(self.tensor, self._byte_count)
        else:
            self.data()

    def data(self) -> bytes | bytearray:
        """Return the bytes as stored by ONNX. Raises `SourceError` where they do not match the shape."""
        self._require_shape()
        if self.pending is not None:
            return to_bytes(self.tensor, self.pending)
        if is_external(self.tensor):
            return self.files.read(self.tensor, self._byte_count)
        try:
            raw = self.tensor.HasField("raw_data")
            data: bytes = (
                self.tensor.raw_data if raw else _data_field_bytes(self.tensor, self._byte_count)
            )
        except (ValueError, TypeError, OverflowError, NotImplementedError) as error:
            raise self._invalid(str(error)) from error
        if len(data) != self._byte_count:
            raise self._invalid(f"shape {self.shape} has {len(data)} bytes")
        return bytes(data)

    def read(self) -> torch.Tensor:
        """Return a copy in the tensor's own type; 4-bit integers as 8-bit ones.

        The bytes are read as they are: numpy has no bfloat16, and torch refuses what stands in for it.
        """
        data = self.data()
        if self.tensor.data_type in _PACKED:
            return _unpack(data, self.tensor).reshape(self.shape)
        assert self.dtype is not None, "strings are never read"
        if not data:
            return torch.empty(self.shape, dtype=self.dtype)
        buffer = data if isinstance(data, bytearray) else bytearray(data)
        return torch.frombuffer(buffer, dtype=self.dtype).reshape(self.shape)

    def write(self, value: torch.Tensor) -> None:
        """Replace the values by those of a tensor of the same shape; the type is kept."""
        if is_external(self.tensor):
            self.pending = value
        else:
            set_bytes(self.tensor, to_bytes(self.tensor, value))

    def _require_shape(self) -> None:
        if problem := shape_problem(self.tensor.dims):
            raise self._invalid(problem)
        if self.dtype is None:
            raise self._invalid(f"{type_name(self.tensor)} values cannot be read")

    def _invalid(self, reason: str) -> SourceError:
        return SourceError(
            self.place,
            f"the tensor is broken ({' '.join(reason.split())})",
            "as many values as its shape says are needed",
            "copy or export the file again",
        )


def set_bytes(tensor: TensorProto, data: bytes) -> None:
    """Replace a tensor's values by these bytes, as raw data."""
    for field in (*_DATA_FIELDS, "external_data", "data_location"):
        tensor.ClearField(field)
    tensor.raw_data = data


def to_bytes(tensor: TensorProto, value: torch.Tensor) -> bytes:
    """Return a value's bytes in the tensor's type."""
    if tensor.data_type in _FOUR_BIT_FLOATS:
        return _pack(_four_bit_codes(value), 4)
    flat = value.detach().to("cpu", _DTYPES[tensor.data_type]).reshape(-1)
    # A view as bytes needs a stride of 1, which `contiguous` does not guarantee for a single value.
    flat = flat.clone(memory_format=torch.contiguous_format)
    array = flat.view(torch.uint8).numpy()
    return _pack(array, bits_of(tensor)) if tensor.data_type in _PACKED else array.tobytes()


def _pack(codes: np.ndarray, bits: int) -> bytes:
    count = 8 // bits
    padded = np.zeros(ceil(len(codes) / count) * count, dtype=np.uint8)
    padded[: len(codes)] = codes & (2**bits - 1)
    parts = padded.reshape(-1, count) << np.arange(0, 8, bits, dtype=np.uint8)
    packed: np.ndarray = np.bitwise_or.reduce(parts, axis=1, dtype=np.uint8)
    return packed.tobytes()


def _unpack(data: bytes | bytearray, tensor: TensorProto) -> torch.Tensor:
    bits, packed = bits_of(tensor), np.frombuffer(data, dtype=np.uint8)
    parts = packed[:, None] >> np.arange(0, 8, bits, dtype=np.uint8)
    codes = (parts & (2**bits - 1)).reshape(-1)[: prod(tensor.dims)]
    if tensor.data_type in _FOUR_BIT_FLOATS:
        numbers = torch.tensor((*_FOUR_BIT_NUMBERS, *(-x for x in _FOUR_BIT_NUMBERS)))
        return numbers[torch.from_numpy(codes).long()].to(torch.float8_e4m3fn)
    if _PACKED[tensor.data_type] == torch.int8:
        sign = 2 ** (bits - 1)
        codes = (codes.astype(np.int8) ^ sign) - sign
    return torch.from_numpy(codes.copy())


def _four_bit_codes(value: torch.Tensor) -> np.ndarray:
    """Return the codes of the nearest 4-bit floats; of two equally near ones the even code."""
    numbers = value.detach().cpu().float().reshape(-1)
    table = torch.tensor(_FOUR_BIT_NUMBERS)
    middles = (table[1:] + table[:-1]) / 2
    size = numbers.abs()
    codes = torch.bucketize(size, middles)
    is_tie = (codes < len(middles)) & (size == middles[codes.clamp(max=len(middles) - 1)])
    codes = codes + (is_tie & (codes % 2 == 1)).long()
    array: np.ndarray = (codes + 8 * numbers.signbit().long()).to(torch.uint8).numpy()
    return array


def _data_field_bytes(tensor: TensorProto, byte_count: int) -> bytes:
    """Return the bytes of the typed fields; refuse empty fields before a shape allocates memory."""
    count = sum(len(getattr(tensor, field)) for field in _DATA_FIELDS)
    if not count and byte_count:
        raise ValueError("it holds no values")
    if tensor.data_type in _PACKED:
        return bytes(number & 255 for number in tensor.int32_data)
    return bytes(to_array(tensor).tobytes()) if count else b""
