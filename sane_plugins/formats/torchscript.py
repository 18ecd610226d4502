"""TorchScript archives: their tensors, and nothing else. No class is made and no code is run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from sane_plugins.errors import SourceError
from sane_plugins.formats.archives import Archive
from sane_plugins.formats.checkpoint_limits import require_backed, scan_member
from sane_plugins.formats.dequantize import FLOATS, Content
from sane_plugins.formats.guards import source_errors
from sane_plugins.formats.pickle_scan import Inert, PickledTensor, Scan, pickled_tensor
from sane_plugins.formats.state_dict import from_state_dict
from sane_plugins.weights import WeightGraph

DEPTH, PARTS = 200, 500_000  # modules in modules, and attributes of all modules together

_QUANTIZED = {torch.qint8: torch.int8, torch.quint8: torch.uint8, torch.qint32: torch.int32}
_Place = tuple[
    str, PickledTensor
]  # the folder of the archive that holds the values, and which of them
_WRAPPED = ("torch.jit._pickle.build_tensorlist", "torch.jit._pickle.restore_type_tag")


def open_script(path: Path, archive: Archive, name: str) -> WeightGraph:
    """Read the tensors of an archive under their attributes' names, those of its code as `constants.N`."""
    folder = name.removesuffix("data.pkl")
    with source_errors(path, "it is broken, or too nested", "a whole TorchScript archive"):
        _require_same_order(path, archive, folder)
        places, unread = _attributes(path, archive, name, f"{folder}data/")
        found = _attributes(path, archive, f"{folder}constants.pkl", f"{folder}constants/")
        places |= {f"constants.{key}": place for key, place in found[0].items()}
        unread |= {f"constants.{key}": why for key, why in found[1].items()}
        tensors = _Tensors(archive, places)
        content = Content(
            tensors=tensors,
            described={key: _described(place[1]) for key, place in places.items()},
            converted={k: _converted(p[1]) for k, p in places.items() if p[1].quantizer},
            unread=unread,
        )
        return from_state_dict(
            tensors,
            str(path),
            container="torchscript",
            ties=_ties(places),
            content=content,
            notes=("its program is left out: weights only",),
        )


def _require_same_order(path: Path, archive: Archive, folder: str) -> None:
    name = f"{folder}byteorder"
    if name in archive.members and archive.read_head(name, 9) != b"little":
        raise SourceError(
            path,
            "it was written on a big-endian machine",
            "little-endian values are read",
            "write it again with torch.jit.save on this machine",
        )


def _attributes(
    path: Path, archive: Archive, name: str, folder: str
) -> tuple[dict[str, _Place], dict[str, tuple[int, str]]]:
    """Return where each tensor's values lie, and the tensors that are not read."""
    scan: Scan = scan_member(archive, name)
    places: dict[str, _Place] = {}
    unread: dict[str, tuple[int, str]] = {}
    for key, record in _walk(path, scan.content):
        found = pickled_tensor(record)
        if found is None:
            unread[key] = (0, "sparse tensors of TorchScript archives are not read")
        elif not _is_known(found.dtype):
            unread[key] = (found.count, f"{found.dtype} values cannot be read")
        else:
            _require_data(path, archive, folder, found)
            places[key] = folder, found
    require_backed(path, [place for _, place in places.values()])
    return places, unread


def _is_known(dtype: torch.dtype) -> bool:
    if dtype.is_floating_point:
        return dtype in FLOATS
    return dtype in _QUANTIZED or not str(dtype).startswith(("torch.qu", "torch.qi", "torch.bits"))


def _require_data(path: Path, archive: Archive, folder: str, place: PickledTensor) -> None:
    held = archive.size(folder + place.storage.key)
    if place.storage.nbytes > held:
        raise SourceError(
            path,
            f"a tensor of it asks for {place.storage.nbytes} bytes where it holds {held}",
            "a whole archive is needed",
            "copy or download it again",
        )


def _walk(path: Path, content: Any) -> Iterator[tuple[str, Inert]]:
    """Yield the tensors' records in the order of attributes; a shared module is met at each name."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    parts = 0
    while waiting:
        names, part = waiting.pop()
        parts += 1
        if len(names) > DEPTH or parts > PARTS:
            raise SourceError(
                path,
                f"its modules are nested more than {DEPTH} deep, or have {PARTS} attributes",
                "a network of fewer is needed",
                "save its state dict",
            )
        if isinstance(part, Inert) and part.name.startswith("torch._utils._rebuild"):
            yield ".".join(names), part
        else:
            inner = [((*names, key), value) for key, value in _children(part) if _is_nested(value)]
            waiting += reversed(inner)


def _children(part: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(part, Inert):
        part = part.args[0] if part.name in _WRAPPED and part.args else part.state
    if isinstance(part, Mapping):
        yield from ((str(key), value) for key, value in part.items() if isinstance(key, str | int))
    elif isinstance(part, list | tuple):
        yield from ((str(number), value) for number, value in enumerate(part))


def _is_nested(value: Any) -> bool:
    return isinstance(value, Inert | Mapping | list | tuple)


def _ties(places: Mapping[str, _Place]) -> dict[str, str]:
    """Return the names of floating-point tensors that are the same values as an earlier one's."""
    first: dict[object, str] = {}
    ties = {}
    for key, (folder, place) in places.items():
        if place.dtype.is_floating_point and place.count:
            where = (
                folder,
                place.storage.key,
                place.dtype,
                place.offset,
                place.shape,
                place.stride,
            )
            if first.setdefault(where, key) != key:
                ties[key] = first[where]
    return ties


def _described(place: PickledTensor) -> tuple[tuple[int, ...], torch.dtype]:
    return place.shape, torch.float32 if place.quantizer else place.dtype


def _converted(place: PickledTensor) -> str:
    scales = "one scale per channel" if "channel" in place.quantizer[0].name else "one scale"
    return f"dequantised from {str(place.dtype).removeprefix('torch.')}, {scales}"


class _Tensors(Mapping[str, torch.Tensor]):
    """The tensors of an archive, read when they are asked for."""

    def __init__(self, archive: Archive, places: Mapping[str, _Place]) -> None:
        self._archive, self._places = archive, places

    def __getitem__(self, key: str) -> torch.Tensor:
        folder, place = self._places[key]
        with source_errors(self._archive.path):
            values = self._values(folder, place)
            return _dequantized(self, folder, place, values) if place.quantizer else values

    def _values(self, folder: str, place: PickledTensor) -> torch.Tensor:
        if not place.count:
            return torch.empty(place.shape, dtype=_integers(place.dtype))
        size = place.dtype.itemsize
        start, count = place.offset * size, (place.end - place.offset) * size
        data = bytearray(self._archive.read_range(folder + place.storage.key, start, count))
        values = torch.frombuffer(data, dtype=_integers(place.dtype))
        return values.as_strided(place.shape, place.stride).contiguous()

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _integers(dtype: torch.dtype) -> torch.dtype:
    """Return the type of the whole numbers that a quantised type is stored as."""
    return _QUANTIZED.get(dtype, dtype)


def _dequantized(
    tensors: _Tensors, folder: str, place: PickledTensor, whole: torch.Tensor
) -> torch.Tensor:
    scheme, scale, zero = place.quantizer[:3]
    if "channel" not in scheme.name:
        if not math.isfinite(scale):
            raise ValueError("no scale")
        return torch._make_per_tensor_quantized_tensor(whole, scale, zero).dequantize()
    axis = place.quantizer[3]
    scales, zeros = (
        _channel_values(tensors, folder, record, place.shape[axis]) for record in (scale, zero)
    )
    return torch._make_per_channel_quantized_tensor(whole, scales, zeros, axis).dequantize()


def _channel_values(tensors: _Tensors, folder: str, record: Any, channels: int) -> torch.Tensor:
    """Return the scales or zero points of so many channels."""
    place = pickled_tensor(record)
    if place is None or place.shape != (channels,) or place.end > place.storage.size:
        raise ValueError("no scale per channel")
    return tensors._values(folder, place)
