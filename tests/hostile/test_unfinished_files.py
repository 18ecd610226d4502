"""Files are written whole or not at all, whoever else writes there, and whenever the writer ends."""

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile.bounded import run_python
from torch import nn

from sane_plugins.atomic_files import private_folder, write_all, write_whole
from sane_plugins.errors import SaneError, SourceError, UsageError
from sane_plugins.formats import (
    HEADER,
    PRETRAINING_STATE,
    open_file,
    save_arrays,
    save_artifact,
    save_checkpoint,
    save_safetensors,
    save_sharded,
)
from sane_plugins.weights import from_module

PRIVATE = ".sane-plugins-"


def _graph(value: float = 1.0, size: int = 8):
    module = nn.Linear(size, size)
    nn.init.constant_(module.weight, value)
    nn.init.constant_(module.bias, value)
    return from_module(module)


def _artifact(path: Path, value: float) -> None:
    save_artifact(PRETRAINING_STATE, {}, {"x": torch.full((8,), value)}, path)


WRITERS: dict[str, Callable[[Path, float], object]] = {
    "net.safetensors": lambda path, value: save_safetensors(_graph(value), path),
    "net.pt": lambda path, value: save_checkpoint(_graph(value), path, {"of": value}),
    "net.npz": lambda path, value: save_arrays(_graph(value), path, {"of": value}),
    "net.safetensors.index.json": lambda path, value: save_sharded(
        _graph(value), path, {"of": value}, limit=64
    ),
    "run.state": _artifact,
    "page.html": lambda path, value: write_whole(path, lambda to: to.write_text(f"{value}" * 99)),
}
writers = pytest.mark.parametrize("name", WRITERS)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@writers
@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_lies_under_a_name_that_can_be_guessed_stays(tmp_path, name: str, kind: str) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim"
    out.mkdir()
    victim.write_text("precious")
    guessed = [out / f"{name}{end}" for end in (".partial", ".tmp", ".old", ".part", "~")]
    for path in guessed:
        {
            "file": lambda p: p.write_text("mine"),
            "link": lambda p: p.symlink_to(victim),
            "folder": Path.mkdir,
        }[kind](path)
    WRITERS[name](out / name, 1.0)
    assert victim.read_text() == "precious"
    for path in guessed:
        assert {"file": path.is_file, "link": path.is_symlink, "folder": path.is_dir}[kind]()
        assert kind != "file" or path.read_text() == "mine"
    assert not [path for path in out.iterdir() if path.name.startswith(PRIVATE)]


@writers
def test_a_link_is_followed_and_permissions_stay(tmp_path, name: str) -> None:
    (tmp_path / "far").mkdir()
    far, near = tmp_path / "far" / name, tmp_path / name
    far.write_text("old")
    far.chmod(0o640)
    near.symlink_to(far)
    WRITERS[name](near, 1.0)
    assert near.is_symlink()
    assert far.read_bytes() != b"old"
    assert stat.S_IMODE(far.stat().st_mode) == 0o640


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
@writers
def test_new_files_have_the_permissions_of_the_umask(tmp_path, name: str, umask: int) -> None:
    before = os.umask(umask)
    try:
        WRITERS[name](tmp_path / name, 1.0)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(x.stat().st_mode) for x in tmp_path.iterdir()} == {0o666 & ~umask}


def test_nobody_else_may_enter_while_files_are_unfinished(tmp_path) -> None:
    seen = []

    def write(path: Path) -> None:
        seen.append((stat.S_IMODE(path.parent.stat().st_mode), path.parent.parent))
        path.write_text("x")

    write_whole(tmp_path / "x", write)
    assert seen == [(0o700, tmp_path)]


@writers
def test_two_writers_at_once_leave_one_whole_result(tmp_path, name: str) -> None:
    for value in (1.0, 2.0):
        (tmp_path / f"{value}").mkdir()
        WRITERS[name](tmp_path / f"{value}" / name, value)
    whole = [_files(tmp_path / f"{value}") for value in (1.0, 2.0)]
    out = tmp_path / "out"
    out.mkdir()
    failures: list[BaseException] = []

    def write(value: float) -> None:
        try:
            for _ in range(15):
                WRITERS[name](out / name, value)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(value,)) for value in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert _files(out) in whole


@writers
@pytest.mark.parametrize("ends", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_end_while_renaming_leaves_all_as_it_was(tmp_path, monkeypatch, name: str, ends) -> None:
    for value in (1.0, 2.0):
        (tmp_path / f"{value}").mkdir()
        WRITERS[name](tmp_path / f"{value}" / name, value)
    old, new = (_files(tmp_path / f"{value}") for value in (1.0, 2.0))
    renames = [0]
    replace = Path.replace

    def counted(self: Path, target: Path) -> Path:
        renames[0] -= 1
        if renames[0] == -1:
            raise ends
        return replace(self, target)

    for count in range(len(new)):
        out = tmp_path / f"after-{count}"
        out.mkdir()
        WRITERS[name](out / name, 1.0)
        with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SourceError)):
            patch.setattr(Path, "replace", counted)
            renames[0] = count
            WRITERS[name](out / name, 2.0)
        assert _files(out) == old
        WRITERS[name](out / name, 2.0)
        assert _files(out) == new
        for path in out.iterdir():
            path.unlink()
        with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SourceError)):
            patch.setattr(Path, "replace", counted)
            renames[0] = count
            WRITERS[name](out / name, 2.0)
        assert not _files(out)


_KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from hostile.test_unfinished_files import WRITERS
out, count = Path(sys.argv[1]), int(sys.argv[2])
rename, replace = Path.rename, Path.replace
def counted(real):
    def call(self, target):
        global count
        count -= 1
        if count < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, target)
    return call
Path.rename, Path.replace = counted(rename), counted(replace)
WRITERS[out.name](out, 2.0)
"""


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("name", ["net.pt", "net.safetensors.index.json"])
def test_a_kill_while_renaming_never_mixes_and_the_next_writer_cleans(
    tmp_path, name: str, count: int
) -> None:
    out = tmp_path / name
    WRITERS[name](out, 1.0)
    program = _KILLED.format(tests=str(Path(__file__).parents[1]))
    done = subprocess.run([sys.executable, "-c", program, str(out), str(count)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [x for x in tmp_path.iterdir() if x.name.startswith(PRIVATE)]
    if out.exists():
        values = torch.cat([x.flatten() for x in open_file(out).state_dict().values()]).unique()
        assert len(values) == 1
        sidecar = tmp_path / f"{name}.provenance.json"
        assert not sidecar.exists() or json.loads(sidecar.read_text()) == {"of": values.item()}
    WRITERS[name](out, 2.0)
    assert not [x for x in tmp_path.iterdir() if x.name.startswith(PRIVATE)]
    assert set(open_file(out).state_dict()["bias"].tolist()) == {2.0}


def test_only_the_folders_of_dead_writers_are_removed(tmp_path) -> None:
    mine = tmp_path / f"{PRIVATE}my_notes"
    mine.mkdir()
    (mine / "lock").write_text("my own file of this name")
    other = tmp_path / f"{PRIVATE}project1"
    other.mkdir()
    (other / "notes.txt").write_text("precious")
    unlocked = (
        tmp_path / f"{PRIVATE}00000000"
    )  # its writer was killed before or after it had a lock
    unlocked.mkdir()
    link = tmp_path / f"{PRIVATE}somelink"
    link.symlink_to(other)
    dead = tmp_path / f"{PRIVATE}deadbeef"
    dead.mkdir()
    (dead / "lock").touch()
    (dead / "x.partial").write_text("half")
    (dead / "away").symlink_to(other)
    with private_folder(tmp_path) as living:
        (living / "latents").write_text("half")
        write_whole(tmp_path / "x", lambda path: path.write_text("x"))
        assert (living / "latents").read_text() == "half"
        assert not dead.exists()
        assert not unlocked.exists()
    assert sorted(_names(tmp_path)) == sorted([mine.name, other.name, link.name, "x"])
    assert (other / "notes.txt").read_text() == "precious"


def test_a_folder_that_another_writer_removes_as_it_is_made_is_made_again(
    tmp_path, monkeypatch
) -> None:
    made: list[Path] = []
    make = tempfile.mkdtemp

    def disturbed(**words) -> str:
        made.append(Path(make(**words)))
        if len(made) < 3:
            made[-1].rmdir()
        return str(made[-1])

    monkeypatch.setattr("tempfile.mkdtemp", disturbed)
    with private_folder(tmp_path) as folder:
        assert [folder] == made[2:] == [*tmp_path.iterdir()]
    assert not [*tmp_path.iterdir()]


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


_FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import hostile.test_unfinished_files as these
from sane_plugins.errors import SaneError
folder = Path(sys.argv[1])
for name in these.WRITERS:
    (folder / name).write_text("old")
resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
for name, write in these.WRITERS.items():
    try:
        write(folder / name, 2.0)
    except SaneError as error:
        print(type(error).__name__, error.place, "|", error)
    else:
        print("nothing was raised for", name)
"""


def test_a_full_disk_names_the_users_file_and_leaves_the_old_one(tmp_path) -> None:
    pytest.importorskip("resource")
    done = run_python("-c", _FULL.format(tests=str(Path(__file__).parents[1])), tmp_path)
    assert done.code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(WRITERS)
    for name, line in zip(WRITERS, lines, strict=True):
        place = "net-00001-of-00002.safetensors" if "index" in name else name
        assert line.startswith(f"SourceError {tmp_path / place} |"), line
        assert "cannot be written (File too large)" in line, line
        assert PRIVATE not in line, line
        assert ".partial" not in line, line
        assert (tmp_path / name).read_text() == "old"
    assert sorted(_names(tmp_path)) == sorted(WRITERS)


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "socket"])
@writers
def test_only_files_are_replaced(tmp_path, monkeypatch, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "folder":
        path.mkdir()
        (path / "mine").write_text("precious")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/null")
    else:
        import socket

        with socket.socket(socket.AF_UNIX) as made:
            monkeypatch.chdir(tmp_path)  # addresses of sockets are short
            made.bind(name)
    before = path.stat()
    with pytest.raises(UsageError, match=f"it is a {kind}"):
        WRITERS[name](path, 1.0)
    assert path.stat().st_mode == before.st_mode
    assert _names(tmp_path) == [name]
    assert kind != "folder" or (path / "mine").read_text() == "precious"


@writers
def test_names_as_long_as_can_be(tmp_path, name: str) -> None:
    for length in (255 - len(".provenance.json"), 255):
        long = "x" * (length - len(name)) + name
        if length == 255 and name in ("net.pt", "net.npz", "net.safetensors.index.json"):
            with pytest.raises(SaneError):  # their provenance has no name
                WRITERS[name](tmp_path / long, 1.0)
            assert long not in _names(tmp_path)
        else:
            WRITERS[name](tmp_path / long, 1.0)
            assert (tmp_path / long).stat().st_size
    with pytest.raises(SaneError):
        WRITERS[name](tmp_path / ("x" * 255 + name), 1.0)
    assert not [x for x in _names(tmp_path) if x.startswith(PRIVATE)]


def test_several_files_are_renamed_in_their_order(tmp_path) -> None:
    """The values before the model, the model before what tells of it: no prefix of the renames is wrong."""
    order: list[str] = []
    original = Path.replace

    def recorded(self: Path, target: Path) -> Path:
        order.append(target.name)
        return original(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", recorded)
        save_sharded(_graph(), tmp_path / "net.safetensors.index.json", {"a": 1}, limit=64)
    assert order[-2:] == [
        "net.safetensors.index.json",
        "net.safetensors.index.json.provenance.json",
    ]
    assert order[0].startswith("net-00001-of-")
    assert HEADER == "sane"


def test_all_or_nothing_where_one_of_several_cannot_be_written(tmp_path) -> None:
    def fail(_path: Path) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "b").write_text("old")
    with pytest.raises(SourceError, match=r"b: it cannot be written \(No space left on device\)"):
        write_all({tmp_path / "a": lambda path: path.write_text("new"), tmp_path / "b": fail})
    assert _files(tmp_path) == {"b": b"old"}
