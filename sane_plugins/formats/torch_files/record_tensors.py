"""The tensors that records of a pickle stand for; what is asked of a file was checked against its size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sane_plugins.formats.limits import require_shape
from sane_plugins.formats.torch_files.inert_pickle import Inert
from sane_plugins.formats.torch_files.pickle_scan import (
    SUBCLASS_FUNCTIONS,
    PickledTensor,
    Storage,
    integers,
    pickled_tensor,
    torch_dtype,
)
from sane_plugins.formats.torch_files.pickled_arrays import ArrayStorages

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
_SPARSE = {"torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_sparse_csr_tensor"}
_COMPRESSED = {
    str(x): x for x in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
}
_SCHEMES = {
    f"torch.{name}": getattr(torch, name)
    for name in ("per_tensor_affine", "per_channel_affine", "per_channel_affine_float_qparams")
}


class RecordTensors:
    """Makes the tensors of inert records, each once. `read_storage` returns the values of a key."""

    def __init__(
        self, path: Path, read_storage: Callable[[Storage], torch.UntypedStorage], nbytes: int
    ) -> None:
        self._path, self._read = path, read_storage
        self._arrays = ArrayStorages(path, nbytes)
        self._made: dict[int, torch.Tensor | None] = {}

    def of(self, record: Any) -> torch.Tensor | None:
        """Return the tensor that a record stands for; None for any other record."""
        if not isinstance(record, Inert):
            return None
        if id(record) not in self._made:
            self._made[id(record)] = self._make(record)
        return self._made[id(record)]

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
            return self.of(args[0])
        if name in SUBCLASS_FUNCTIONS:
            tensor = self._make(Inert(args[0].name, args[2]))
            return tensor if tensor is None else self._with_parts(tensor, args[3:])
        if name in _SPARSE:
            return self._sparse(*args[:2])
        if name == "torch._utils._rebuild_meta_tensor_no_storage":
            return self._without_values(args[1], args[0])
        if name == "torch._utils._rebuild_wrapper_subclass":
            return self._without_values(args[2], args[1], f"tensors of {args[0].name} are not read")
        if name == "torch._utils._rebuild_nested_tensor":
            buffer = self.of(args[0])
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
        made: torch.Tensor = torch._utils._rebuild_qtensor(
            typed, offset, told.shape, told.stride, params, False, OrderedDict()
        )
        return made

    def _channel_values(self, values: Any) -> Any:
        """Return the scales or zero points of channels; old versions of torch wrote lists."""
        return values if isinstance(values, list) else self.of(values)

    def _sparse(self, layout: Any, data: Any) -> torch.Tensor:
        """Make a sparse tensor; raises `RuntimeError` where its indices do not fit."""
        kind = layout.args[0] if isinstance(layout, Inert) else layout.name
        *parts, size = data[:3] if kind == "torch.sparse_coo" else data[:4]
        shape = integers(size)
        require_shape(self._path, "a sparse tensor", shape)
        tensors: list[Any] = [self.of(part) for part in parts]
        options: dict[str, Any] = {"size": shape, "check_invariants": True}
        if kind == "torch.sparse_coo":
            return torch.sparse_coo_tensor(*tensors, **options)
        return torch.sparse_compressed_tensor(*tensors, layout=_COMPRESSED[kind], **options)

    def _with_parts(self, tensor: torch.Tensor, state: Any) -> torch.Tensor:
        """Give a tensor without values those that its class makes it of, such as codes and scales."""
        told = next((part for part in state if isinstance(part, dict)), {})
        if tensor.is_meta:
            parts = {key: self.of(x) for key, x in told.items() if isinstance(x, Inert)}
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
