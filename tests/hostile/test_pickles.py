"""Pickles that want to run or import code, or take memory and time: tensors are read, nothing else."""

from __future__ import annotations

import builtins
import copyreg
import importlib
import io
import os
import pickle
import struct
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from hostile.bounded import run
from torch import nn

from sane_plugins.errors import SaneError
from sane_plugins.formats import open_file

SECONDS = 6.0  # of the processor, on a busy machine; unbounded, the pickles below took minutes or all memory
START, NEW = b"\x80\x02", b"cx\ny\n)\x81"  # an empty object of the class x.y
WEIGHT = {"weight": torch.ones(3, 2)}


class Trap:
    """Pickled as a call; `ran` is a file that the call would make."""

    def __init__(self, ran: Path, kind: str = "system") -> None:
        self.ran, self.kind = ran, kind

    def __reduce_ex__(self, protocol: int) -> tuple[object, ...]:
        command = f"touch {self.ran}"
        if self.kind == "system":
            return os.system, (command,)
        if self.kind == "eval":
            return eval, (f"__import__('os').mkdir({str(self.ran)!r})",)
        if self.kind == "getattr":
            return getattr, (Trap(self.ran), "x")
        if self.kind == "import":
            return __import__, ("hostile_module",)
        if self.kind == "state":
            return dict, (), Trap(self.ran)
        if self.kind == "items":
            return list, (), None, iter([Trap(self.ran)]), iter([])
        if self.kind == "setter":  # of protocol 5: a function that is given the state
            return dict, (), {"a": 1}, None, None, _Setter(self.ran)
        return Module, (), {"__setstate__": Trap(self.ran), "_parameters": Trap(self.ran)}


class _Setter:
    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __call__(self, *_: object) -> None:
        self.ran.touch()

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.ran}",)


class Module(nn.Module):
    """A module whose every way of being made would be noticed."""

    ran: Path | None = None

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def __setstate__(self, state: object) -> None:
        raise AssertionError("it was made")


TRAPS = ["system", "eval", "getattr", "import", "state", "items", "setter", "build"]


def save(content: object, path: Path, form: str) -> Path:
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    return path


def write(path: Path, content: bytes) -> Path:
    """Write a checkpoint around a pickle made here."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {"data.pkl": content, "data/0": bytes(24), "version": b"3"}.items():
            archive.writestr(f"net/{name}", data)
    return path


@pytest.fixture
def nothing_is_imported(monkeypatch) -> None:
    """Let every import and call by name fail while a file is read."""

    def fail(*args: object, **_: object) -> None:
        raise AssertionError(f"called with {args}")

    def guarded(path: Path):
        with monkeypatch.context() as patch:
            patch.setattr(importlib, "import_module", fail)
            patch.setattr(os, "system", fail)
            patch.setattr(builtins, "eval", fail)
            patch.setattr(torch, "load", fail)
            return open_file(path)

    return guarded


@pytest.mark.parametrize("form", ["zip", "row", "pickle"])
@pytest.mark.parametrize("kind", TRAPS)
def test_traps_beside_weights_are_not_sprung(
    kind: str, form: str, tmp_path, nothing_is_imported
) -> None:
    ran = tmp_path / "ran"
    content = {"first": Trap(ran, kind), **WEIGHT, "last": [Trap(ran, kind)]}
    path, modules = save(content, tmp_path / "net.pt", form), {*sys.modules}
    graph = nothing_is_imported(path)
    assert graph.size == 6
    assert not ran.exists()
    assert {*sys.modules} == modules


@pytest.mark.parametrize("form", ["zip", "row", "pickle"])
def test_traps_in_modules_are_not_sprung(form: str, tmp_path, nothing_is_imported) -> None:
    module, ran = Module(), tmp_path / "ran"
    module.callback = Trap(ran)
    module.fc._forward_hooks[0] = Trap(ran, "eval")  # type: ignore[assignment]
    module._buffers["trap"] = Trap(ran)  # type: ignore[assignment]
    module._modules["more"] = Trap(ran, "getattr")  # type: ignore[assignment]
    graph = nothing_is_imported(save({"model": module}, tmp_path / "net.pt", form))
    assert {param.key for param in graph.params} == {"fc.weight", "fc.bias"}
    assert not ran.exists()
    assert any("not imported" in note and "system" in note for note in graph.notes)


def test_traps_alone_are_refused_in_one_sentence(tmp_path, nothing_is_imported) -> None:
    for form in ("zip", "row", "pickle"):
        path = save(Trap(tmp_path / "ran"), tmp_path / "net.pt", form)
        with pytest.raises(SaneError, match=r"pickled objects \(posix\.system\)") as caught:
            nothing_is_imported(path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_the_command_runs_nothing(tmp_path) -> None:
    module = Module()
    module.trap = Trap(tmp_path / "ran")
    torch.save(module, tmp_path / "net.pt")
    assert run("inspect", tmp_path / "net.pt").require_small().code == 0
    assert not (tmp_path / "ran").exists()


EXTENSION = 240  # of the codes for private use


@pytest.mark.parametrize(
    "content",
    [
        b"\x82\xf0(S'touch RAN'\ntR",
        b"\x83\xf0\x00(S'touch RAN'\ntR",
        b"(S'touch RAN'\niposix\nsystem\n",
        b"(cposix\nsystem\nS'touch RAN'\no",
        b"X\x05\0\0\0posixX\x06\0\0\0system\x93(S'touch RAN'\ntR",
        b"cposix\nsystem\n(S'touch RAN'\nt\x81",
        b"cposix\nsystem\n(S'touch RAN'\nt}\x92",
        b"cposix\nsystem\n0cbuiltins\ngetattr\n(cposix\n__dict__\nS'system'\ntR(S'touch RAN'\ntR",
        NEW + b"}S'__setstate__'\ncposix\nsystem\nsbS'touch RAN'\nb",
        NEW + b"}(S'__class__'\ncposix\nsystem\nS'__reduce__'\ncposix\nsystem\nub",
        b"ccollections\nOrderedDict\n)R}S'__setstate__'\ncposix\nsystem\nsbS'touch RAN'\nb",
        b"ccollections\ndefaultdict\n(cposix\nsystem\ntR",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nsystem\ncx\ny\n(S'touch RAN'\nt}tR",
        b"ctorch._utils\n_rebuild_parameter\n(cposix\nsystem\n(S'touch RAN'\ntR\x89}tR",
        b"ctorch.storage\n_load_from_bytes\n(C\x1a\x80\x02cposix\nsystem\nX\x04\0\0\0trueR.tR",
        b"cfunctools\npartial\n(cposix\nsystem\ntR(S'touch RAN'\ntR",
        b"ctypes\nFunctionType\n(ctypes\nCodeType\n)R}tR)R",
    ],
    ids=range(17),
)
def test_pickles_made_by_hand_call_nothing(content: bytes, tmp_path, nothing_is_imported) -> None:
    ran = tmp_path / "ran"
    content = content.replace(b"RAN", str(ran).encode())
    copyreg.add_extension("posix", "system", EXTENSION)
    try:
        copyreg._extension_cache[EXTENSION] = os.system  # type: ignore[attr-defined]
        read(write(tmp_path / "net.pt", START + content + b"."), nothing_is_imported)
        read(write(tmp_path / "net.pt", START + b"]" + content + b"a."), nothing_is_imported)
        (tmp_path / "net.pt").write_bytes(START + content + b".")
        read(tmp_path / "net.pt", nothing_is_imported)
    finally:
        copyreg.remove_extension("posix", "system", EXTENSION)
        copyreg._extension_cache.pop(EXTENSION, None)  # type: ignore[attr-defined]
    assert not ran.exists()


def read(path: Path, reader=open_file) -> None:
    """Read a file; what is refused is refused soon and in one short sentence."""
    start = time.process_time()
    try:
        reader(path).state_dict()
    except SaneError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 800
    assert time.process_time() - start < SECONDS


PERSISTENT = [b"N", b"K\1", b"S'storage'\n", b"()", b"(l", NEW, b"(S'storage'\ncx\ny\nNNNt"]
PERSISTENT += [b"(S'module'\nS'posix'\nS'x'\nt", b"(S'module'\nt"]
PERSISTENT += [
    b"(S'storage'\nctorch\n%bStorage\nS'0'\nS'cpu'\n%bt" % pair
    for pair in [(b"Float", b"J\xff\xff\xff\xff"), (b"Evil", b"K\6"), (b"Float", b"S'6'\n")]
]


@pytest.mark.parametrize("pid", PERSISTENT, ids=range(len(PERSISTENT)))
def test_persistent_ids_of_anything_are_one_sentence(pid: bytes, tmp_path) -> None:
    read(write(tmp_path / "net.pt", START + pid + b"Q."))
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + b"QK\0K\6\x85K\1\x85\x89}tR."
    read(write(tmp_path / "net.pt", START + tensor))


# What takes memory and time


def module(inner: bytes) -> bytes:
    """Return the code of a module; `inner` are the names and codes of its modules."""
    parts = b"".join(
        b"X%b%b}" % (struct.pack("<I", len(n)), n) for n in (b"_parameters", b"_buffers")
    )
    return NEW + b"}(" + parts + b"X\x08\0\0\0_modules}(" + inner + b"uub"


def doubling(make) -> bytes:
    """Return code that puts something in place 1 of the memo, sixty times made of two of itself."""
    return b"]q\x010" + (make(b"h\x01") + b"q\x010") * 60


MODULES = doubling(lambda x: module(b"U\1a" + x + b"U\1b" + x)).replace(b"]", module(b""), 1)
ENTRIES = b"}(" + b"".join(b"J%bN" % struct.pack("<i", i) for i in range(100_000)) + b"uq\x000"
COLLIDING = b"".join(pickle.dumps(i * (2**61 - 1), 2)[2:-1] + b"N" for i in range(40_000))
ARRAY = b"cnumpy._core.multiarray\n_reconstruct\n)R(K\1J%b\x85cnumpy\ndtype\nX\2\0\0\0f8\x85RNh\0tb"
VALUES = b"B" + struct.pack("<I", 8_000_000) + bytes(8_000_000) + b"q\x000"
LARGE = {
    "modules that double": MODULES + b"h\x01",
    "lists that double": doubling(lambda x: b"(" + x + x + b"l") + b"h\x01",
    "tuples that double as key": b"}" + doubling(lambda x: x + x + b"\x86") + b"h\x01Ns",
    "states that double": doubling(lambda x: NEW + x + x + b"\x86b") + b"h\x01",
    "a module in itself": NEW + b"q\x01}(" + module(b"U\1ah\x01")[len(NEW) + 2 : -1] + b"b",
    "a mapping of many": ENTRIES + b"(" + b"cx\ny\nh\0\x85R" * 30_000 + b"l",
    "a state of many": ENTRIES + b"(" + (NEW + b"h\0b") * 30_000 + b"l",
    "arguments of many": b"(" + b"N" * 90_000 + b"tq\x000cx\ny\n)Rq\x010(" + b"h\1h\0R" * 90_000 + b"l",
    "roots of one": MODULES + b"(" + (NEW + b"h\1b") * 20_000 + b"l",
    "keys that collide": b"}(" + COLLIDING + b"u",
    "parameters of parameters": b"ctorch._utils\n_rebuild_parameter\nq\0" + b"h\0" * 90_000
    + b"N" + b"\x85R" * 90_000,
    "arrays of one": VALUES + b"(" + ARRAY % struct.pack("<i", 10**6) * 3_000 + b"l",
    "an array of more": VALUES + ARRAY % struct.pack("<i", 2**31 - 1),
    "deep objects": NEW * 90_000 + b"b" * 89_999,
    "marks": b"(" * 200_000 + b"l" * 200_000,
    "memory far away": b"}r\xff\xff\xff\x7f",
    "a long number": b"\x8b" + struct.pack("<i", 10**7) + b"\x7f" * 10**7,
    "a long text of digits": b"}I" + b"9" * 10**6 + b"\nNs",
    "a length that is none": b"\x8d" + b"\xff" * 8 + b"x",
    "a large bytearray": b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R",
    "a large dtype": b"cnumpy\nzeros\nJ\xff\xff\xff\x7f\x85R",
}  # fmt: skip


@pytest.mark.parametrize("kind", LARGE)
def test_pickles_take_little_time_for_their_size(kind: str, tmp_path) -> None:
    read(write(tmp_path / "net.pt", START + LARGE[kind] + b"."))


def test_the_command_is_small_for_them(tmp_path) -> None:
    path = write(tmp_path / "net.pt", START + LARGE["a mapping of many"] + b".")
    assert "entries" in run("inspect", path).require_small().require_sentence()


def test_pickles_in_pickles_are_not_followed(tmp_path) -> None:
    data = b""
    for _ in range(300):
        call = b"ctorch.storage\n_load_from_bytes\nB%b" % struct.pack("<I", len(data)) + data
        data = START + call + b"\x85R."
    (tmp_path / "net.pt").write_bytes(data)
    read(tmp_path / "net.pt")
    file = io.BytesIO()
    torch.save({"a": torch.ones(2)}, file, _use_new_zipfile_serialization=False)
    (tmp_path / "net.pt").write_bytes(pickle.dumps(file.getvalue()))
    read(tmp_path / "net.pt")


def test_a_tensor_past_its_part_is_refused(tmp_path) -> None:
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x06(U\x01vK\x04K\x04ttQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0K\4\x85K\1\x85\x89}tR."
    with pytest.raises(SaneError):
        open_file(write(tmp_path / "net.pt", START + tensor))
    fitting = tensor.replace(b"K\x04K\x04tt", b"K\x02K\x04tt")
    assert open_file(write(tmp_path / "net.pt", START + fitting)).size == 4


def test_tensors_of_other_classes_are_counted_as_all_are(tmp_path) -> None:
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x06tQ"
    size = pickle.dumps((10**6, 10**6), 2)[2:-1]
    plain = b"ctorch._utils\n_rebuild_tensor_v2\n"
    told = b"(" + storage + b"K\0" + size + b"K\0K\0\x86\x89}t"
    for code in (plain + told + b"R", *(
        b"ctorch._tensor\n%b\n(" % name + plain + b"cx\ny\n" + told + b"}tR"
        for name in (b"_rebuild_from_type", b"_rebuild_from_type_v2")
    )):  # fmt: skip
        with pytest.raises(SaneError, match="ask for"):
            open_file(write(tmp_path / "net.pt", START + code + b"."))


def test_arrays_of_one_in_many_shapes_are_counted(tmp_path) -> None:
    shapes = b"".join(
        ARRAY.replace(b"J%b\x85", b"(" + b"K\1" * i + b"J%bt") % struct.pack("<i", 10**6)
        for i in range(120)
    )
    with pytest.raises(SaneError, match="ask for"):
        open_file(write(tmp_path / "net.pt", START + VALUES + b"(" + shapes + b"l."))
