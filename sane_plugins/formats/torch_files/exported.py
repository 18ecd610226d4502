"""Archives of torch.export (`.pt2`): only their weights are read; the program is not imported.

Three layouts: weights as raw values beside a JSON of their shapes (torch 2.9 on), a checkpoint per model
(`data/weights/NAME.pt`), and before that a checkpoint beside the program (`serialized_state_dict.pt`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sane_plugins.formats.archives import Archive
from sane_plugins.formats.guards import source_errors
from sane_plugins.formats.limits import parse_json, require_json_size
from sane_plugins.formats.torch_files.archive_tensors import LocatedTensors
from sane_plugins.formats.torch_files.checkpoint_files import read_archive
from sane_plugins.formats.torch_files.pickle_scan import PickledTensor, Storage, integers
from sane_plugins.formats.torch_files.torch_checkpoints import open_archive
from sane_plugins.formats.torch_files.torchscript import find_pickle
from sane_plugins.weights import WeightGraph

_CONFIG = re.compile(r"(?P<root>.*?)data/weights/(?P<model>[^/]+)_weights_config\.json")
_OLDER = re.compile(r"(.*/)?(data/weights/[^/]+\.pt|serialized_state_dict\.(pt|json))")
_STRIDED = 7
_TYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
    28: torch.uint16,
    29: torch.float8_e4m3fn,
    30: torch.float8_e5m2,
    31: torch.float8_e4m3fnuz,
    32: torch.float8_e5m2fnuz,
    33: torch.float8_e8m0fnu,
    34: torch.uint32,
    35: torch.uint64,
}


def find_programs(archive: Archive) -> list[str]:
    """Return the members that tell of the weights of exported programs; none for other archives."""
    return [x for x in archive.members if _CONFIG.fullmatch(x) or _OLDER.fullmatch(x)]


def open_exported(path: Path, archive: Archive, programs: list[str]) -> WeightGraph:
    """Open the largest of an archive's programs: parameters and persistent buffers, by their names.

    Raises `SourceError` for an archive that is damaged or exceeds the limits.
    """
    with source_errors(path, needed="a whole archive of torch.export"):
        sizes = {name: _size(path, archive, name) for name in programs}
        best = max(programs, key=sizes.__getitem__)
        others = [name for name in programs if name != best]
        notes: tuple[str, ...] = ("its program is left out: weights only",)
        notes += (f"not read: {', '.join(others[:8])}",) if others else ()
        if not _CONFIG.fullmatch(best):
            return _open_checkpoint(path, archive, best, notes)
        return _open_values(path, archive, best, notes)


def _size(path: Path, archive: Archive, name: str) -> int:
    """Return how many bytes the weights of a program have."""
    if not _CONFIG.fullmatch(name):
        return archive.size(name)
    return sum(
        x.count * x.dtype.itemsize for _, _, x in _entries(path, archive, name) if x is not None
    )


def _open_checkpoint(
    path: Path, archive: Archive, name: str, notes: tuple[str, ...]
) -> WeightGraph:
    inner = Archive(path, archive.read(name))
    content = find_pickle(inner)
    if content is None:
        raise ValueError("no checkpoint")
    graph = open_archive(path, inner, content)
    return replace(graph, container="exported", notes=(*graph.notes, *notes))


def _open_values(path: Path, archive: Archive, name: str, notes: tuple[str, ...]) -> WeightGraph:
    located = LocatedTensors(path, archive)
    for key, member, tensor in _entries(path, archive, name):
        if tensor is None:
            count = _pickled_count(path, archive, member)
            located.leave_out(key, count, "it is of a kind that torch.export pickles by itself")
        else:
            located.add(key, "", tensor)
    constants = name.replace("data/weights/", "data/constants/").replace("_weights_", "_constants_")
    if constants in archive.members:
        for key, _, _ in _entries(path, archive, constants):
            located.leave_out(f"constants.{key}", 0, "a constant of its program, no parameter")
    return located.graph("exported", notes)


def _entries(
    path: Path, archive: Archive, config: str
) -> Iterator[tuple[str, str, PickledTensor | None]]:
    """Yield names, members and tensors of a program; None for a tensor that was pickled."""
    require_json_size(path, archive.size(config))
    folder = config.rpartition("/")[0]
    for key, told in parse_json(path, archive.read(config))["config"].items():
        member = f"{folder}/{told['path_name']}"
        tensor = None if told["use_pickle"] else _tensor(archive, member, told["tensor_meta"])
        yield key, member, tensor


def _tensor(archive: Archive, member: str, told: dict[str, Any]) -> PickledTensor | None:
    """Return a tensor whose raw values are a member; None for one that is not laid out in strides."""
    dtype = _TYPES.get(told["dtype"])
    if dtype is None or told["layout"] != _STRIDED:
        return None
    shape, stride, (offset,) = (
        integers([size["as_int"] for size in sizes])
        for sizes in (told["sizes"], told["strides"], [told["storage_offset"]])
    )
    if len(shape) != len(stride):
        raise ValueError("no tensor")
    storage = Storage(member, dtype, archive.size(member) // dtype.itemsize)
    return PickledTensor(storage, dtype, offset, shape, stride)


def _pickled_count(path: Path, archive: Archive, member: str) -> int:
    """Return the number of values of a tensor that has a checkpoint of its own."""
    inner = Archive(path, archive.read(member))
    content = find_pickle(inner)
    found = read_archive(path, inner, content).content if content else None
    return found.numel() if torch.is_tensor(found) else 0
