"""TorchScript archives: only their tensors are read; no class is instantiated and no code is run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from sane_plugins.errors import SourceError
from sane_plugins.formats.archives import Archive
from sane_plugins.formats.guards import source_errors
from sane_plugins.formats.torch_files.archive_tensors import LocatedTensors
from sane_plugins.formats.torch_files.checkpoint_limits import scan_member
from sane_plugins.formats.torch_files.inert_pickle import Inert
from sane_plugins.formats.torch_files.pickle_scan import pickled_tensor
from sane_plugins.weights import WeightGraph

MAX_MODULE_DEPTH = 200
MAX_ATTRIBUTES = 500_000  # of all modules together; a shared one counts under each of its names

_WRAPPER_FUNCTIONS = ("torch.jit._pickle.build_tensorlist", "torch.jit._pickle.restore_type_tag")


def find_pickle(archive: Archive) -> str | None:
    """Return the name of the pickle in an archive's single top-level folder; None where it has none."""
    names = [name for name in archive.members if re.fullmatch(r"[^/]+/data\.pkl", name)]
    return names[0] if len(names) == 1 else None


def is_script(archive: Archive, name: str) -> bool:
    """Tell whether an archive with that pickle is a program, not a checkpoint."""
    return f"{name.removesuffix('data.pkl')}constants.pkl" in archive.members


def open_script(path: Path, archive: Archive, name: str) -> WeightGraph:
    """Open an archive: tensors by the names of their attributes, constants of its code as `constants.N`."""
    folder = name.removesuffix("data.pkl")
    with source_errors(path, "it is broken, or too nested", "a whole TorchScript archive"):
        _require_little_endian(path, archive, folder)
        located = LocatedTensors(path, archive)
        _locate(path, archive, located, name, f"{folder}data/", "")
        _locate(
            path, archive, located, f"{folder}constants.pkl", f"{folder}constants/", "constants."
        )
        return located.graph("torchscript", ("its program is left out: weights only",))


def _require_little_endian(path: Path, archive: Archive, folder: str) -> None:
    name = f"{folder}byteorder"
    if name in archive.members and archive.read_head(name, 9) != b"little":
        raise SourceError(
            path,
            "it was written on a big-endian machine",
            "little-endian values are read",
            "write it again with torch.jit.save on this machine",
        )


def _locate(
    path: Path, archive: Archive, located: LocatedTensors, name: str, folder: str, prefix: str
) -> None:
    """Find the tensors of one pickle, whose storages lie in `folder`."""
    for key, record in _walk(path, scan_member(archive, name).content):
        found = pickled_tensor(record)
        if found is None:
            reason = "sparse tensors of TorchScript archives are not read"
            located.leave_out(prefix + key, 0, reason)
        else:
            located.add(prefix + key, folder, found)


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
