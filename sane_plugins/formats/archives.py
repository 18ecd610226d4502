"""Zip archives read within limits, so that a malicious file (a zip bomb, overlapping members) is refused.

The central directory is checked before anything is unpacked: its size, the number of members, their names,
their offsets, and their compression ratios.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from struct import Struct
from threading import Lock
from typing import Any, BinaryIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from sane_plugins.errors import SourceError
from sane_plugins.formats import limits
from sane_plugins.formats.guards import open_until_collected, reopen_later, source_errors

MEMBERS = 100_000
MAX_DIRECTORY_BYTES_PER_MEMBER = 1024  # on average

_EOCD, _ZIP64_LOCATOR, _ZIP64_EOCD = Struct("<4s4H2LH"), Struct("<4sLQL"), Struct("<4sQ2H2L4Q")
_LOCAL_HEADER = Struct("<4s5H3L2H")


class Archive:
    """A zip file with a checked directory; it stays open, so that the path may be replaced meanwhile.

    `data` is its content where it is part of another file, at `path`. Raises `SourceError` for a file that is
    not a complete zip archive, or that exceeds the limits.
    """

    def __init__(self, path: Path, data: bytes | None = None) -> None:
        self.path, self._lock, self._data = path, Lock(), data
        with source_errors(path, "it is broken, no whole zip archive"):
            self._file: BinaryIO = (
                open_until_collected(self, path) if data is None else io.BytesIO(data)
            )
            file = self._file
            _check_directory(path, file, self.nbytes)
            self._zip = ZipFile(file)
            infos = [info for info in self._zip.infolist() if not info.is_dir()]
            _check_members(path, infos)
            self._starts = _member_starts(path, file, infos, self._zip.start_dir)
        self.members = {info.filename: info for info in infos}

    def __reduce__(self) -> tuple[Any, ...]:
        if self._data is not None:
            return Archive, (self.path, self._data)
        return reopen_later(Archive, self.path, self._file)

    @property
    def is_plain_file(self) -> bool:
        """Return whether the archive is a file, with every member stored uncompressed."""
        members = self.members.values()
        return self._data is None and all(x.compress_type == ZIP_STORED for x in members)

    @property
    def nbytes(self) -> int:
        """Return the size of the archive."""
        return os.fstat(self._file.fileno()).st_size if self._data is None else len(self._data)

    def is_packed(self, name: str) -> bool:
        """Return whether a member is compressed, so that reading any part of it unpacks it."""
        return self.members[name].compress_type != ZIP_STORED

    def size(self, name: str) -> int:
        """Return the uncompressed size of a member in bytes."""
        return self.members[name].file_size

    def start(self, name: str) -> int:
        """Return where in the file a member's data begins."""
        return self._starts[name]

    def read(self, name: str, start: int = 0) -> bytes:
        """Return a member's bytes from an offset on."""
        with source_errors(self.path), self._lock, self._zip.open(self.members[name]) as member:
            member.seek(start)
            return member.read()

    def read_range(self, name: str, start: int, count: int) -> bytes:
        """Return a range of a member's bytes; of an uncompressed member, only that range is read."""
        if self.is_packed(name):
            return self.read(name, start)[:count]
        with source_errors(self.path), self._lock:
            self._file.seek(self._starts[name] + start)
            return self._file.read(min(count, self.size(name) - start))

    def read_head(self, name: str, count: int) -> bytes:
        """Return the first bytes of a member."""
        with source_errors(self.path), self._lock, self._zip.open(self.members[name]) as member:
            return member.read(count)


def _check_directory(path: Path, file: BinaryIO, size: int) -> None:
    """Refuse a directory that is too large to parse, or that is not where the end record says."""
    count, length, start, end = _read_directory_end(file, size)
    if count > MEMBERS or length > MAX_DIRECTORY_BYTES_PER_MEMBER * (count + 1):
        raise limit_error(
            path,
            f"it says that it has {count} members in {length} bytes of directory",
            f"at most {MEMBERS} members of {MAX_DIRECTORY_BYTES_PER_MEMBER} bytes each are read",
        )
    if start + length != end:
        raise ValueError("the directory is not where it is said to be")


def _read_directory_end(file: BinaryIO, size: int) -> tuple[int, int, int, int]:
    """Return the number of members, the directory's length and start, and where it should end."""
    end = size - _EOCD.size
    magic, _, _, _, count, length, start, comment = _EOCD.unpack(_read_at(file, end, _EOCD.size))
    if magic != b"PK\5\6" or comment:
        raise ValueError("no end of a zip archive")
    if end >= _ZIP64_LOCATOR.size:
        magic, _, zip64_offset, _ = _ZIP64_LOCATOR.unpack(
            _read_at(file, end - _ZIP64_LOCATOR.size, _ZIP64_LOCATOR.size)
        )
        if magic == b"PK\6\7":
            zip64 = _ZIP64_EOCD.unpack(_read_at(file, zip64_offset, _ZIP64_EOCD.size))
            count, length, start, end = zip64[7], zip64[8], zip64[9], zip64_offset
    return count, length, start, end


def _read_at(file: BinaryIO, start: int, count: int) -> bytes:
    file.seek(start)
    return file.read(count)


def _check_members(path: Path, infos: list[ZipInfo]) -> None:
    if len(infos) > MEMBERS:
        raise limit_error(path, f"it has {len(infos)} members", f"at most {MEMBERS} are read")
    names = {info.filename for info in infos}
    if len(names) < len(infos):
        raise limit_error(path, "two of its members have one name", "each needs its own")
    for info in infos:
        _check_member(path, info)
    require_unpacked(path, sum(info.file_size for info in infos))


def _check_member(path: Path, info: ZipInfo) -> None:
    name = info.orig_filename
    if name[:1] == "/" or name[1:2] == ":" or {"\\", "\0"} & {*name} or ".." in name.split("/"):
        raise limit_error(path, f"a member is called {ascii(name)[:80]}", "plain names are needed")
    if info.flag_bits & 1 or info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise limit_error(
            path,
            f"'{name}' is encrypted or packed in an uncommon way",
            "plain or deflated members are needed",
        )
    if info.compress_type == ZIP_STORED and info.compress_size != info.file_size:
        raise limit_error(path, f"'{name}' has two sizes", "a whole archive is needed")
    if info.file_size > limits.expanded_bytes(info.compress_size):
        raise limit_error(
            path,
            f"'{name}' gets {info.file_size} bytes out of {info.compress_size}",
            f"at most {limits.MAX_EXPANSION} times as many are unpacked",
        )


def _member_starts(path: Path, file: BinaryIO, infos: list[ZipInfo], end: int) -> dict[str, int]:
    """Return the offset of each member's data; refuse overlapping members and mismatched local headers."""
    starts, previous_end = {}, 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        header = _LOCAL_HEADER.unpack(_read_at(file, info.header_offset, _LOCAL_HEADER.size))
        name = _read_at(file, info.header_offset + _LOCAL_HEADER.size, header[9])
        coding = "utf-8" if info.flag_bits & 0x800 else "cp437"
        if header[0] != b"PK\3\4" or name != info.orig_filename.encode(coding):
            raise limit_error(
                path,
                f"'{info.filename}' is not where it is said to be",
                "a whole archive is needed",
            )
        start = info.header_offset + _LOCAL_HEADER.size + header[9] + header[10]
        if info.header_offset < previous_end or start + info.compress_size > end:
            raise limit_error(
                path,
                f"'{info.filename}' overlaps another part of the file",
                "each member needs a place of its own",
            )
        starts[info.filename], previous_end = start, start + info.compress_size
    return starts


def require_unpacked(path: Path, nbytes: int) -> None:
    """Raise `SourceError` where more bytes are to be unpacked than a file of its size may hold."""
    if nbytes > limits.expanded_bytes(path.stat().st_size):
        raise limit_error(
            path,
            f"unpacked it has {nbytes} bytes",
            f"at most {limits.MAX_EXPANSION} times its size is read",
        )


def limit_error(path: Path, found: str, needed: str) -> SourceError:
    """Return the error for an archive that exceeds the limits."""
    return SourceError(
        path, found, needed, "where you trust it, write it anew with its own library"
    )
