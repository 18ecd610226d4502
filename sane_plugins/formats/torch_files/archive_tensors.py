"""Tensors of TorchScript and torch.export archives: checked against the archive's members, read on access."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sane_plugins.formats.archives import Archive, require_unpacked
from sane_plugins.formats.dequantize import FLOATS, Content
from sane_plugins.formats.guards import source_errors
from sane_plugins.formats.limits import require_names, require_shape, require_tensor_count
from sane_plugins.formats.state_dict import from_state_dict
from sane_plugins.formats.torch_files.checkpoint_limits import require_backed, require_held
from sane_plugins.formats.torch_files.pickle_scan import PickledTensor, pickled_tensor
from sane_plugins.weights import WeightGraph

_QUANTIZED = {torch.qint8: torch.int8, torch.quint8: torch.uint8, torch.qint32: torch.int32}


class LocatedTensors:
    """Tensors found in an archive so far, by name; the key of a storage is its member."""

    def __init__(self, path: Path, archive: Archive) -> None:
        self._path, self._archive = path, archive
        self._found: dict[str, PickledTensor] = {}
        self._backed: list[PickledTensor] = []
        self._unread: dict[str, tuple[int, str]] = {}

    def add(self, key: str, folder: str, tensor: PickledTensor) -> None:
        """Add a tensor whose storage lies in `folder`. Raises `SourceError` where the member is too small."""
        self._require_name(key)
        require_shape(self._path, f"'{key}'", tensor.shape)
        tensor = _in_folder(tensor, folder)
        require_held(self._path, tensor.storage, self._archive.size(tensor.storage.key))
        self._backed.append(tensor)
        if _is_known(tensor.dtype):
            self._found[key] = tensor
        else:
            self._unread[key] = (tensor.count, f"{tensor.dtype} values cannot be read")

    def leave_out(self, key: str, count: int, reason: str) -> None:
        """Name a tensor that is not read; `count` is its number of values where they may be weights."""
        self._require_name(key)
        self._unread[key] = (count, reason)

    def graph(self, container: str, notes: tuple[str, ...]) -> WeightGraph:
        """Return the network of all that was added."""
        require_backed(self._path, self._backed, self._archive.nbytes)
        # Any part of a packed storage is read by unpacking it from its start.
        members = [tensor.storage.key for tensor in self._backed]
        packed = [name for name in members if self._archive.is_packed(name)]
        require_unpacked(self._path, sum(map(self._archive.size, packed)))
        tensors = _ArchiveTensors(self._archive, self._found)
        content = Content(
            tensors=tensors,
            described={key: _describe(tensor) for key, tensor in self._found.items()},
            converted={k: _conversion(x) for k, x in self._found.items() if x.quantizer},
            unread=self._unread,
        )
        return from_state_dict(
            tensors,
            str(self._path),
            container=container,
            ties=_ties(self._found),
            content=content,
            notes=notes,
        )

    def _require_name(self, key: str) -> None:
        require_names(self._path, [key])
        count = len(self._backed) + len(self._unread) + 1
        require_tensor_count(self._path, count, self._archive.nbytes)


class _ArchiveTensors(Mapping[str, torch.Tensor]):
    """Tensors of an archive, read on access."""

    def __init__(self, archive: Archive, found: Mapping[str, PickledTensor]) -> None:
        self._archive, self._found = archive, found

    def __getitem__(self, key: str) -> torch.Tensor:
        tensor = self._found[key]
        with source_errors(self._archive.path):
            values = self.values_of(tensor)
            return _dequantized(self, tensor, values) if tensor.quantizer else values

    def values_of(self, tensor: PickledTensor) -> torch.Tensor:
        """Return a tensor's values as they are stored."""
        if not tensor.count:
            return torch.empty(tensor.shape, dtype=_integer_dtype(tensor.dtype))
        size = tensor.dtype.itemsize
        start, count = tensor.offset * size, (tensor.end - tensor.offset) * size
        data = bytearray(self._archive.read_range(tensor.storage.key, start, count))
        values = torch.frombuffer(data, dtype=_integer_dtype(tensor.dtype))
        return values.as_strided(tensor.shape, tensor.stride).contiguous()

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def _in_folder(tensor: PickledTensor, folder: str) -> PickledTensor:
    """Return a tensor whose storage, and those of its scales, are named by their members."""
    scales = [pickled_tensor(part) for part in tensor.quantizer]
    quantizer = tuple(
        part if scale is None else _in_folder(scale, folder)
        for part, scale in zip(tensor.quantizer, scales, strict=True)
    )
    storage = tensor.storage._replace(key=folder + tensor.storage.key)
    return replace(tensor, storage=storage, quantizer=quantizer)


def _is_known(dtype: torch.dtype) -> bool:
    if dtype.is_floating_point:
        return dtype in FLOATS
    return dtype in _QUANTIZED or not str(dtype).startswith(("torch.qu", "torch.qi", "torch.bits"))


def _ties(found: Mapping[str, PickledTensor]) -> dict[str, str]:
    """Return the floating-point tensors that are the same values as an earlier one, mapped to its name."""
    first_keys: dict[object, str] = {}
    ties = {}
    for key, x in found.items():
        if x.dtype.is_floating_point and x.count:
            identity = (x.storage.key, x.dtype, x.offset, x.shape, x.stride)
            if first_keys.setdefault(identity, key) != key:
                ties[key] = first_keys[identity]
    return ties


def _describe(tensor: PickledTensor) -> tuple[tuple[int, ...], torch.dtype]:
    return tensor.shape, torch.float32 if tensor.quantizer else tensor.dtype


def _conversion(tensor: PickledTensor) -> str:
    scales = "one scale per channel" if "channel" in tensor.quantizer[0].name else "one scale"
    return f"dequantised from {str(tensor.dtype).removeprefix('torch.')}, {scales}"


def _integer_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the integer dtype that a quantised dtype is stored as."""
    return _QUANTIZED.get(dtype, dtype)


def _dequantized(
    tensors: _ArchiveTensors, tensor: PickledTensor, integers: torch.Tensor
) -> torch.Tensor:
    scheme, scale, zero = tensor.quantizer[:3]
    if "channel" not in scheme.name:
        if not math.isfinite(scale):
            raise ValueError("no scale")
        return torch._make_per_tensor_quantized_tensor(integers, scale, zero).dequantize()
    axis = tensor.quantizer[3]
    scales, zeros = (_channel_values(tensors, x, tensor.shape[axis]) for x in (scale, zero))
    return torch._make_per_channel_quantized_tensor(integers, scales, zeros, axis).dequantize()


def _channel_values(tensors: _ArchiveTensors, tensor: Any, channels: int) -> torch.Tensor:
    """Return the scales or zero points (channels,)."""
    is_tensor = isinstance(tensor, PickledTensor) and tensor.end <= tensor.storage.size
    if not is_tensor or tensor.shape != (channels,):
        raise ValueError("no scale per channel")
    return tensors.values_of(tensor)
