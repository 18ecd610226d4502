"""External data of an ONNX model: located, validated and read without trusting the model.

A model may name any path, offset and length. Real paths decide what lies beside it: links are
followed, and their targets are checked. The values are copied rather than mapped: a mapped file
that another program shortens would end the process. A hard link is read like any file: it cannot be
told from the file itself, package managers install by hard links, and making one takes the right to
read the file.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from onnx import TensorProto

from sane_plugins.errors import SourceError

_KEYS = {"location", "offset", "length", "checksum"}
_BYTE_COUNT = re.compile(r"[0-9]{1,19}")
_DRIVE_LETTER = re.compile(r"[A-Za-z]:")
_ORT_MEMORY = "*/_ORT_MEM_ADDR_/*"
# Tied tensors share bytes, but a real model has no thousand tensors that each claim the whole file.
_MAX_SHARING_RATIO, _SHARING_SLACK_BYTES = 4, 2**20
_OPEN_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)  # what became a pipe since the check must not block
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


class _RejectedError(Exception):
    """What was found, what is needed and the way out; the tensor's name is added by the handler."""


@dataclass(frozen=True)
class _Span:
    """A tensor's bytes: a file, its status when first seen, and the offset."""

    path: Path
    status: os.stat_result
    offset: int


class ExternalFiles:
    """External data files of one ONNX model."""

    def __init__(self, model_path: Path) -> None:
        self._model = Path(model_path)
        folder, real = (Path(os.path.realpath(p)) for p in (self._model.parent, self._model))
        self._folders = tuple(dict.fromkeys((folder, real.parent)))
        self._roots = (*self._folders, *_hugging_face_blobs(folder))
        self._statuses: dict[Path, os.stat_result] = {}
        self._tensors: dict[int, TensorProto] = {}  # holding a tensor keeps its id unique
        self._total = 0

    @property
    def paths(self) -> tuple[Path, ...]:
        """Return the real paths of the files that tensors were found in."""
        return tuple(self._statuses)

    @property
    def nbytes(self) -> int:
        """Return the size of the files that tensors were found in so far."""
        return sum({(s.st_dev, s.st_ino): s.st_size for s in self._statuses.values()}.values())

    def require(self, tensor: TensorProto, needed: int) -> None:
        """Check location, offset and length of a tensor of `needed` bytes without reading.

        Raises `SourceError` for a location outside of the model's folder (a Hugging Face cache's own
        `blobs` counts as inside), for anything but a regular file, for an offset or a length that
        does not fit the file and the shape, and where all tensors together claim far more than
        the files hold.
        """
        with self._naming_tensor(tensor):
            self._span(tensor, needed)

    def read(self, tensor: TensorProto, needed: int) -> bytearray:
        """Return a tensor's bytes, reading nothing else.

        Raises `SourceError` as `require` does, and where the file changed since it was first seen.
        """
        with self._naming_tensor(tensor):
            span = self._span(tensor, needed)
            with _open(span.path) as file:
                _require_same(os.fstat(file), span.status)
                # The checked path is now open: check again that it still is where it was.
                self._require_inside(span.path)
                values = _read_exactly(file, span.offset, needed)
                _require_same(os.fstat(file), span.status)
        return values

    @contextmanager
    def _naming_tensor(self, tensor: TensorProto) -> Iterator[None]:
        """Turn errors into a `SourceError` that names the model, the tensor and its file."""
        try:
            yield
        except _RejectedError as rejection:
            found, needed, way_out = rejection.args
        except MemoryError:
            found = "holds more values than memory has room for"
            needed, way_out = "one tensor is read at a time", "use a machine with more memory"
        except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a name too long
            reason = getattr(error, "strerror", None) or "its name is not usable"
            found, needed = f"cannot be read ({reason})", "the values are kept there"
            way_out = "put the file beside the model, as it was saved"
        else:
            return
        location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        raise SourceError(
            f"{self._model}, tensor {_short(tensor.name)}",
            f"its file {_short(location)} {found}",
            needed,
            way_out,
        ) from None

    def _span(self, tensor: TensorProto, needed: int) -> _Span:
        entries = _entries(tensor)
        path = self._resolve(_relative(entries.get("location", "")))
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise _RejectedError(
                "is no regular file",
                "values are read from regular files only",
                "export the model again",
            )
        _require_same(status, self._statuses.setdefault(path, status))
        offset = _checked_offset(entries, needed, status.st_size)
        self._require_plausible_total(tensor, needed)
        return _Span(path, self._statuses[path], offset)

    def _resolve(self, relative: str) -> Path:
        """Return the real path of a file; where the model is a link, either folder is allowed."""
        candidates = [folder / relative for folder in self._folders]
        existing = next((p for p in candidates if os.path.lexists(p)), candidates[0])
        path = existing.resolve(strict=True)
        self._require_inside(path)
        return path

    def _require_inside(self, path: Path) -> None:
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(root) for root in self._roots):
            raise _RejectedError(
                "lies outside of the model's folder",
                "a model may only read what lies beside it",
                "copy the file itself beside the model, if you trust it",
            )

    def _require_plausible_total(self, tensor: TensorProto, needed: int) -> None:
        if id(tensor) not in self._tensors:
            self._tensors[id(tensor)] = tensor
            self._total += needed
        held = self.nbytes
        if self._total > _MAX_SHARING_RATIO * held + _SHARING_SLACK_BYTES:
            raise _RejectedError(
                f"is one of the model's files of {held} bytes, which its tensors so far would have "
                f"to fill {self._total} bytes from",
                f"at most {_MAX_SHARING_RATIO} times what is there may be shared",
                "export the model again",
            )


def _hugging_face_blobs(folder: Path) -> Iterator[Path]:
    """Yield the blob folder of the Hugging Face cache that holds this folder as `snapshots/<revision>`.

    A blob folder that is itself a link is refused, as it could lead anywhere.
    """
    for inner in (folder, *folder.parents):
        blobs = inner.parent.with_name("blobs") if inner.parent.name == "snapshots" else None
        if blobs is not None and blobs.is_dir() and not blobs.is_symlink():
            yield blobs
            return


def _entries(tensor: TensorProto) -> dict[str, str]:
    """Return the entries of `external_data`; keys that ONNX does not define are ignored."""
    entries = {}
    for entry in tensor.external_data:
        if entry.key in entries:
            raise _RejectedError(
                f"comes with more than one {entry.key}",
                "readers would differ in which one counts",
                "export the model again",
            )
        if not isinstance(entry.value, str):  # protobuf gives bytes that are no text as bytes
            raise _RejectedError(
                f"comes with a {_short(entry.key)} that is no text",
                "text is needed",
                "export the model again",
            )
        if entry.key in _KEYS:
            entries[entry.key] = entry.value
    return entries


def _relative(location: str) -> str:
    """Return a location that is a plain relative path on every system."""
    if location == _ORT_MEMORY:
        raise _RejectedError(
            "stands for the memory of the program that saved the model",
            "the values themselves are needed",
            "save the model again with its values",
        )
    is_absolute = location.startswith("/") or _DRIVE_LETTER.match(location) is not None
    parts = location.split("/")
    if not location or is_absolute or ".." in parts or any(c in location for c in "\\\0"):
        raise _RejectedError(
            "is no relative path of plain names",
            "a model may only read what lies beside it",
            "export the model again with its data in its own folder",
        )
    return location


def _checked_offset(entries: dict[str, str], needed: int, size: int) -> int:
    """Return the offset of a tensor's bytes, checked against the size of the file."""
    offset, length = _byte_count(entries, "offset", 0), _byte_count(entries, "length", needed)
    if length != needed:
        raise _RejectedError(
            f"is said to hold {length} bytes of it",
            f"its shape and type need {needed}",
            "export the model again",
        )
    if offset + length > size:
        raise _RejectedError(
            f"has {size} bytes",
            f"the tensor's {length} begin at {offset}",
            "copy or download the file again",
        )
    return offset


def _byte_count(entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key)
    if text is not None and not _BYTE_COUNT.fullmatch(text):
        raise _RejectedError(
            f"comes with the {key} {_short(text)}",
            "a count of bytes is needed",
            "export the model again",
        )
    return default if text is None else int(text)


@contextmanager
def _open(path: Path) -> Iterator[int]:
    file = os.open(path, _OPEN_FLAGS)
    try:
        yield file
    finally:
        os.close(file)


def _require_same(found: os.stat_result, first: os.stat_result) -> None:
    names = ("st_dev", "st_ino", "st_size", "st_mtime_ns")
    if any(getattr(found, name) != getattr(first, name) for name in names):
        raise _RejectedError(
            "changed since the model was opened",
            "one state of the network is needed",
            "open the model again",
        )


def _read_exactly(file: int, offset: int, needed: int) -> bytearray:
    """Read exactly `needed` bytes from `offset` on."""
    values = bytearray(needed)
    rest = memoryview(values)
    with os.fdopen(file, "rb", buffering=0, closefd=False) as stream:
        stream.seek(offset)
        while rest:
            count = stream.readinto(rest)
            if not count:
                raise _RejectedError(
                    "ended too early",
                    "it was longer when the model was opened",
                    "open the model again",
                )
            rest = rest[count:]
    return values


def _short(text: str | bytes) -> str:
    """Quote a name from the file on one line of bounded length."""
    quoted = repr(text)
    return quoted if len(quoted) <= 80 else f"{quoted[:77]}..."
