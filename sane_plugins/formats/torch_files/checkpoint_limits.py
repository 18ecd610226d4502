"""Check a checkpoint's pickle against the file's size before any of its values is read or allocated."""

from __future__ import annotations

import io
from pathlib import Path

from sane_plugins.errors import SourceError
from sane_plugins.formats.archives import Archive
from sane_plugins.formats.limits import expanded_bytes, require_shape, require_tensor_count
from sane_plugins.formats.torch_files.inert_pickle import PickleLimitError, step_limit
from sane_plugins.formats.torch_files.pickle_scan import PickledTensor, Scan, Storage

MAX_PICKLE_BYTES = 64 * 2**20


def scan_member(archive: Archive, name: str) -> Scan:
    """Scan a pickled member; its objects become inert records."""
    if archive.size(name) > MAX_PICKLE_BYTES:
        raise PickleLimitError("too large")
    return Scan(io.BytesIO(archive.read(name)), step_limit(archive.nbytes))


def require_held(path: Path, storage: Storage, nbytes: int) -> None:
    """Raise where a storage is larger than its data."""
    if storage.nbytes > nbytes:
        raise size_error(path, storage.nbytes, nbytes)


def require_backed(path: Path, tensors: list[PickledTensor], nbytes: int) -> None:
    """Raise where tensors reach past their data, or are too many or, expanded or shared, too large in total.

    `nbytes` is the size of the file.
    """
    require_tensor_count(path, len(tensors), nbytes)
    for tensor in tensors:
        require_shape(path, "a tensor", tensor.shape)
    distinct = {(t.storage.key, t.dtype, t.offset, t.shape, t.stride): t for t in tensors}.values()
    requested = sum(t.count * t.dtype.itemsize for t in distinct)
    held = sum({t.storage.key: t.storage.nbytes for t in distinct}.values())
    if requested > expanded_bytes(min(held, nbytes)):
        raise size_error(path, requested, held)
    if any(t.end > t.storage.room for t in distinct):
        raise size_error(path, max(t.end for t in distinct), held)


def size_error(path: Path, requested: int, held: int) -> SourceError:
    """Return the error for a file whose tensors ask for more bytes than it holds."""
    return SourceError(
        path,
        f"its tensors ask for {requested} bytes where it holds {held}",
        "a whole checkpoint is needed",
        "copy or download it again",
    )
