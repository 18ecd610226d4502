"""TorchScript archives: only their tensors are read; no class is instantiated and no code is run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from sane_plugins.errors import SourceError
from sane_plugins.formats.archives import Archive, require_unpacked
from sane_plugins.formats.dequantize import FLOATS, Content
from sane_plugins.formats.guards import source_errors
from sane_plugins.formats.limits import require_names, require_shape, require_tensor_count
from sane_plugins.formats.state_dict import from_state_dict
from sane_plugins.formats.torch_files.checkpoint_limits import require_backed, scan_member
from sane_plugins.formats.torch_files.pickle_scan import Inert, PickledTensor, Scan, pickled_tensor
from sane_plugins.weights import WeightGraph

MAX_MODULE_DEPTH = 200
MAX_ATTRIBUTES = 500_000  # of all modules together; a shared one counts under each of its names

_QUANTIZED = {torch.qint8: torch.int8, torch.quint8: torch.uint8, torch.qint32: torch.int32}
_TensorInFolder = tuple[str, PickledTensor]  # the folder of the archive that holds its storage
_WRAPPER_FUNCTIONS = ("torch.jit._pickle.build_tensorlist", "torch.jit._pickle.restore_type_tag")


def open_script(path: Path, archive: Archive, name: str) -> WeightGraph:
    """Open an archive: tensors by the names of their attributes, constants of its code as `constants.N`."""
    folder = name.removesuffix("data.pkl")
    with source_errors(path, "it is broken, or too nested", "a whole TorchScript archive"):
        _require_little_endian(path, archive, folder)
        locations, unread = _find_tensors(path, archive, name, f"{folder}data/")
        constants = _find_tensors(path, archive, f"{folder}constants.pkl", f"{folder}constants/")
        locations |= {f"constants.{key}": location for key, location in constants[0].items()}
        unread |= {f"constants.{key}": reason for key, reason in constants[1].items()}
        tensors = _LazyTensors(archive, locations)
        content = Content(
            tensors=tensors,
            described={key: _describe(location[1]) for key, location in locations.items()},
            converted={
                k: _describe_conversion(p[1]) for k, p in locations.items() if p[1].quantizer
            },
            unread=unread,
        )
        return from_state_dict(
            tensors,
            str(path),
            container="torchscript",
            ties=_ties(locations),
            content=content,
            notes=("its program is left out: weights only",),
        )


def _require_little_endian(path: Path, archive: Archive, folder: str) -> None:
    name = f"{folder}byteorder"
    if name in archive.members and archive.read_head(name, 9) != b"little":
        raise SourceError(
            path,
            "it was written on a big-endian machine",
            "little-endian values are read",
            "write it again with torch.jit.save on this machine",
        )


def _find_tensors(
    path: Path, archive: Archive, name: str, folder: str
) -> tuple[dict[str, _TensorInFolder], dict[str, tuple[int, str]]]:
    """Return each tensor with its folder, and the tensors that cannot be read."""
    scan: Scan = scan_member(archive, name)
    locations: dict[str, _TensorInFolder] = {}
    unread: dict[str, tuple[int, str]] = {}
    tensors: list[PickledTensor] = []
    for key, record in _walk(path, scan.content):
        require_names(path, [key])
        require_tensor_count(path, len(locations) + len(unread) + 1, archive.nbytes)
        found = pickled_tensor(record)
        if found is None:
            unread[key] = (0, "sparse tensors of TorchScript archives are not read")
            continue
        require_shape(path, f"'{key}'", found.shape)
        _require_storage(path, archive, folder, found)
        tensors.append(found)
        if _is_known(found.dtype):
            locations[key] = folder, found
        else:
            unread[key] = (found.count, f"{found.dtype} values cannot be read")
    require_backed(path, tensors, archive.nbytes)
    # Any part of a packed storage is read by unpacking it from its start.
    packed = [name for x in tensors if archive.is_packed(name := folder + x.storage.key)]
    require_unpacked(path, sum(map(archive.size, packed)))
    return locations, unread


def _is_known(dtype: torch.dtype) -> bool:
    if dtype.is_floating_point:
        return dtype in FLOATS
    return dtype in _QUANTIZED or not str(dtype).startswith(("torch.qu", "torch.qi", "torch.bits"))


def _require_storage(path: Path, archive: Archive, folder: str, tensor: PickledTensor) -> None:
    held = archive.size(folder + tensor.storage.key)
    if tensor.storage.nbytes > held:
        raise SourceError(
            path,
            f"a tensor of it asks for {tensor.storage.nbytes} bytes where it holds {held}",
            "a whole archive is needed",
            "copy or download it again",
        )


def _walk(path: Path, content: Any) -> Iterator[tuple[str, Inert]]:
    """Yield tensor records in attribute order; a shared module is visited under each of its names."""
    pending: list[tuple[tuple[str, ...], Any]] = [((), content)]
    parts = 0
    while pending:
        names, part = pending.pop()
        children = [] if _is_tensor(part) else list(islice(_children(part), MAX_ATTRIBUTES))
        parts += 1 + len(children)
        if len(names) > MAX_MODULE_DEPTH or parts > MAX_ATTRIBUTES:
            raise SourceError(
                path,
                f"its modules are nested more than {MAX_MODULE_DEPTH} deep,"
                f" or have {MAX_ATTRIBUTES} attributes",
                "a network of fewer is needed",
                "save its state dict",
            )
        if _is_tensor(part):
            yield ".".join(names), part
        else:
            inner = [((*names, key), value) for key, value in children if _is_nested(value)]
            pending += reversed(inner)


def _is_tensor(part: Any) -> bool:
    return isinstance(part, Inert) and part.name.startswith("torch._utils._rebuild")


def _children(part: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(part, Inert):
        part = part.args[0] if part.name in _WRAPPER_FUNCTIONS and part.args else part.state
    if isinstance(part, Mapping):
        yield from ((str(key), value) for key, value in part.items() if isinstance(key, str | int))
    elif isinstance(part, list | tuple):
        yield from ((str(number), value) for number, value in enumerate(part))


def _is_nested(value: Any) -> bool:
    return isinstance(value, Inert | Mapping | list | tuple)


def _ties(locations: Mapping[str, _TensorInFolder]) -> dict[str, str]:
    """Return the floating-point tensors that are the same values as an earlier one, mapped to its name."""
    first_keys: dict[object, str] = {}
    ties = {}
    for key, (folder, tensor) in locations.items():
        if tensor.dtype.is_floating_point and tensor.count:
            identity = (
                folder,
                tensor.storage.key,
                tensor.dtype,
                tensor.offset,
                tensor.shape,
                tensor.stride,
            )
            if first_keys.setdefault(identity, key) != key:
                ties[key] = first_keys[identity]
    return ties


def _describe(tensor: PickledTensor) -> tuple[tuple[int, ...], torch.dtype]:
    return tensor.shape, torch.float32 if tensor.quantizer else tensor.dtype


def _describe_conversion(tensor: PickledTensor) -> str:
    scales = "one scale per channel" if "channel" in tensor.quantizer[0].name else "one scale"
    return f"dequantised from {str(tensor.dtype).removeprefix('torch.')}, {scales}"


class _LazyTensors(Mapping[str, torch.Tensor]):
    """Tensors of an archive, read on access."""

    def __init__(self, archive: Archive, locations: Mapping[str, _TensorInFolder]) -> None:
        self._archive, self._locations = archive, locations

    def __getitem__(self, key: str) -> torch.Tensor:
        folder, tensor = self._locations[key]
        with source_errors(self._archive.path):
            values = self._values(folder, tensor)
            return _dequantized(self, folder, tensor, values) if tensor.quantizer else values

    def _values(self, folder: str, tensor: PickledTensor) -> torch.Tensor:
        if not tensor.count:
            return torch.empty(tensor.shape, dtype=_integer_dtype(tensor.dtype))
        size = tensor.dtype.itemsize
        start, count = tensor.offset * size, (tensor.end - tensor.offset) * size
        data = bytearray(self._archive.read_range(folder + tensor.storage.key, start, count))
        values = torch.frombuffer(data, dtype=_integer_dtype(tensor.dtype))
        return values.as_strided(tensor.shape, tensor.stride).contiguous()

    def __iter__(self) -> Iterator[str]:
        return iter(self._locations)

    def __len__(self) -> int:
        return len(self._locations)


def _integer_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the integer dtype that a quantised dtype is stored as."""
    return _QUANTIZED.get(dtype, dtype)


def _dequantized(
    tensors: _LazyTensors, folder: str, tensor: PickledTensor, integers: torch.Tensor
) -> torch.Tensor:
    scheme, scale, zero = tensor.quantizer[:3]
    if "channel" not in scheme.name:
        if not math.isfinite(scale):
            raise ValueError("no scale")
        return torch._make_per_tensor_quantized_tensor(integers, scale, zero).dequantize()
    axis = tensor.quantizer[3]
    scales, zeros = (
        _channel_values(tensors, folder, record, tensor.shape[axis]) for record in (scale, zero)
    )
    return torch._make_per_channel_quantized_tensor(integers, scales, zeros, axis).dequantize()


def _channel_values(tensors: _LazyTensors, folder: str, record: Any, channels: int) -> torch.Tensor:
    """Return the scales or zero points (channels,)."""
    tensor = pickled_tensor(record)
    if tensor is None or tensor.shape != (channels,) or tensor.end > tensor.storage.size:
        raise ValueError("no scale per channel")
    return tensors._values(folder, tensor)
