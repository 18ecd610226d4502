"""Zip files within stated limits: what torch and NumPy write is read, what is built to hurt is refused.

The directory at the end of the file is checked before anything is unpacked: its own size, the number of
members, their names, their places in the file, and how much larger they get.
"""

from __future__ import annotations

from pathlib import Path
from struct import Struct
from threading import Lock
from typing import Any, BinaryIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from sane_plugins.errors import SourceError
from sane_plugins.formats.guards import open_until_collected, reopen_later, source_errors

MEMBERS = 100_000
ENTRY = 1024  # mean bytes per member in the directory
RATIO, ROOM = (
    100,
    64 * 2**20,
)  # unpacked, a member or a file may be ROOM large, or RATIO times as large

_END, _FAR_END, _FAR = Struct("<4s4H2LH"), Struct("<4sLQL"), Struct("<4sQ2H2L4Q")
_LOCAL = Struct("<4s5H3L2H")


class Archive:
    """A zip file whose directory was checked; it stays open, so that it may be replaced meanwhile.

    Raises `SourceError` for what is no whole zip file, and for one outside the limits.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, Lock()
        with source_errors(path, "it is broken, no whole zip archive"):
            self._file = file = open_until_collected(self, path)
            _check_directory(path, file)
            self._zip = ZipFile(file)
            infos = [info for info in self._zip.infolist() if not info.is_dir()]
            _check_members(path, infos)
            self._starts = _member_starts(path, file, infos, self._zip.start_dir)
        self.members = {info.filename: info for info in infos}

    def __reduce__(self) -> tuple[Any, ...]:
        return reopen_later(Archive, self.path, self._file)

    @property
    def stored(self) -> bool:
        """Tell whether every member lies in the file as it is."""
        return all(info.compress_type == ZIP_STORED for info in self.members.values())

    def size(self, name: str) -> int:
        """Return the number of bytes of a member, unpacked."""
        return self.members[name].file_size

    def read(self, name: str, start: int = 0) -> bytes:
        """Return a member's bytes from an offset on."""
        with source_errors(self.path), self._zip.open(self.members[name]) as member:
            member.seek(start)
            return member.read()

    def read_range(self, name: str, start: int, count: int) -> bytes:
        """Return some of a member's bytes; of one that is stored, only these are read."""
        if self.members[name].compress_type != ZIP_STORED:
            return self.read(name, start)[:count]
        with source_errors(self.path), self._lock:
            self._file.seek(self._starts[name] + start)
            return self._file.read(min(count, self.size(name) - start))

    def read_head(self, name: str, count: int) -> bytes:
        """Return the first bytes of a member."""
        with source_errors(self.path), self._zip.open(self.members[name]) as member:
            return member.read(count)


def _check_directory(path: Path, file: BinaryIO) -> None:
    """Refuse a directory that is too large to be looked at, or that is not where it says it is."""
    count, length, start, end = _directory(file, path.stat().st_size)
    if count > MEMBERS or length > ENTRY * (count + 1):
        raise limit_error(
            path,
            f"it says that it has {count} members in {length} bytes of directory",
            f"at most {MEMBERS} members of {ENTRY} bytes each are read",
        )
    if start + length != end:
        raise ValueError("the directory is not where it is said to be")


def _directory(file: BinaryIO, size: int) -> tuple[int, int, int, int]:
    """Return the number of members, the directory's length and start, and where it should end."""
    end = size - _END.size
    magic, _, _, _, count, length, start, comment = _END.unpack(_bytes(file, end, _END.size))
    if magic != b"PK\5\6" or comment:
        raise ValueError("no end of a zip archive")
    if end >= _FAR_END.size:
        magic, _, place, _ = _FAR_END.unpack(_bytes(file, end - _FAR_END.size, _FAR_END.size))
        if magic == b"PK\6\7":
            far = _FAR.unpack(_bytes(file, place, _FAR.size))
            count, length, start, end = far[7], far[8], far[9], place
    return count, length, start, end


def _bytes(file: BinaryIO, start: int, count: int) -> bytes:
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
    total = sum(info.file_size for info in infos)
    if total > RATIO * path.stat().st_size + ROOM:
        raise limit_error(
            path, f"unpacked it has {total} bytes", f"at most {RATIO} times its size is read"
        )


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
    if info.file_size > max(ROOM, RATIO * info.compress_size):
        raise limit_error(
            path,
            f"'{name}' gets {info.file_size} bytes out of {info.compress_size}",
            f"at most {RATIO} times as many are unpacked",
        )


def _member_starts(path: Path, file: BinaryIO, infos: list[ZipInfo], end: int) -> dict[str, int]:
    """Return where each member's bytes start; refuse members that overlap or are called otherwise there."""
    starts, free = {}, 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        local = _LOCAL.unpack(_bytes(file, info.header_offset, _LOCAL.size))
        name = _bytes(file, info.header_offset + _LOCAL.size, local[9])
        coding = "utf-8" if info.flag_bits & 0x800 else "cp437"
        if local[0] != b"PK\3\4" or name != info.orig_filename.encode(coding):
            raise limit_error(
                path,
                f"'{info.filename}' is not where it is said to be",
                "a whole archive is needed",
            )
        start = info.header_offset + _LOCAL.size + local[9] + local[10]
        if info.header_offset < free or start + info.compress_size > end:
            raise limit_error(
                path,
                f"'{info.filename}' overlaps another part of the file",
                "each member needs a place of its own",
            )
        starts[info.filename], free = start, start + info.compress_size
    return starts


def limit_error(path: Path, found: str, needed: str) -> SourceError:
    """Return the error for an archive outside the limits."""
    return SourceError(
        path, found, needed, "where you trust it, write it anew with its own library"
    )
