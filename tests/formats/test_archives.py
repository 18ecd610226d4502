"""Hostile files: zip bombs, path tricks, pickles that lie. Each is one sentence; nothing runs."""

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sane_plugins.errors import SaneError, SourceError
from sane_plugins.formats import archives, limits, open_file
from sane_plugins.formats.torch_files import inert_pickle


def refuses(path: Path, said: str | None = None) -> None:
    """Assert that a file is refused in one line, without a word of other libraries."""
    with pytest.raises(SourceError, match=said) as caught:
        open_file(path)
    assert "\n" not in str(caught.value)
    assert not any(word in str(caught.value) for word in ("allow_pickle", "Traceback"))


def write_zip(path: Path, members: dict[str, bytes], packed: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", packed) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, packed)
    return path


def array(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(params=["net.pt", "net.jit", "net.npz"])
def archive(request, tmp_path) -> Path:
    """Return a small archive of each form."""
    path = tmp_path / request.param
    if path.suffix == ".npz":
        np.savez(path, weight=np.ones((3, 2), np.float32))
    else:
        torch.save({"weight": torch.ones(3, 2)}, path)
    assert open_file(path).size == 6
    return path


def test_a_bomb_is_not_unpacked(archive) -> None:
    zeros = bytes(2 * limits.ROOM)
    write_zip(archive, {**members_of(archive), "net/zeros.npy": zeros}, zipfile.ZIP_DEFLATED)
    assert archive.stat().st_size < 2**20
    refuses(archive, "at most 100 times")


def test_many_small_bombs_are_one(archive, monkeypatch) -> None:
    members = members_of(archive) | {f"net/data/x{i}": bytes(2**20) for i in range(12)}
    write_zip(archive, members, zipfile.ZIP_DEFLATED)
    assert open_file(archive).size == 6 if archive.suffix != ".npz" else True
    monkeypatch.setattr(limits, "ROOM", 2**21)
    refuses(archive, "unpacked it has .* at most 100 times")


def test_too_many_members_are_refused(archive, monkeypatch) -> None:
    write_zip(archive, members_of(archive) | {f"net/{i}.npy": b"" for i in range(50)})
    monkeypatch.setattr(archives, "MEMBERS", 40)
    refuses(archive, "members .* at most 40")


def test_a_directory_that_hides_its_members_is_refused(archive) -> None:
    write_zip(archive, members_of(archive) | {f"net/{'x' * 2000}{i}": b"" for i in range(20)})
    refuses(archive, "directory")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\\b", "C:x", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(archive, name: str) -> None:
    stand_in = "@" * len(name)
    write_zip(archive, members_of(archive) | {stand_in: b"1"})
    archive.write_bytes(archive.read_bytes().replace(stand_in.encode(), name.encode()))
    refuses(archive, "plain names")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_given_twice_is_refused(archive) -> None:
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(opened.namelist()[0], b"other")
    refuses(archive, "one name")


def local(name: str, data: bytes) -> bytes:
    head = (b"PK\3\4", 20, 0, 0, 0, 0x21, zlib.crc32(data), len(data), len(data), len(name), 0)
    return struct.pack("<4s5H3L2H", *head) + name.encode() + data


def central(name: str, data: bytes, start: int) -> bytes:
    head = (b"PK\1\2", 20, 20, 0, 0, 0, 0x21, zlib.crc32(data), len(data), len(data), len(name))
    return (
        struct.pack("<4s6H3LH", *head) + struct.pack("<4H2L", 0, 0, 0, 0, 0, start) + name.encode()
    )


def test_members_in_members_are_refused(tmp_path) -> None:
    inner = array(np.ones(3, np.float32))
    outer = local("inner.npy", inner)
    body = local("outer.npy", outer)
    listed = central("outer.npy", outer, 0)
    listed += central("inner.npy", inner, len(body) - len(outer))
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, len(listed), len(body), 0)
    path = tmp_path / "net.npz"
    path.write_bytes(body + listed + end)
    with zipfile.ZipFile(path) as opened:
        assert opened.read("inner.npy") == inner
    refuses(path, "overlaps")


def test_a_member_called_otherwise_in_the_file_is_refused(archive) -> None:
    data = archive.read_bytes()
    name = zipfile.ZipFile(archive).namelist()[0].encode()
    archive.write_bytes(data.replace(name, b"#" * len(name), 1))
    refuses(archive, "not where it is said to be")


def test_other_zip_files_say_so(tmp_path) -> None:
    for suffix in (".pt", ".jit", ".npz"):
        path = write_zip(tmp_path / f"net{suffix}", {"word/document.xml": b"<xml/>"})
        refuses(path, "a zip archive of something else")


@pytest.mark.parametrize(
    "suffix", [".npz", ".npy", ".pt", ".jit", ".safetensors", ".safetensors.index.json"]
)
def test_text_and_bytes_are_no_network(suffix: str, tmp_path) -> None:
    for data in (
        b"hello world",
        b"{}",
        b"PK\3\4" + bytes(50),
        b"\x80\x02",
        b"[" * 100_000,
        bytes(100),
    ):
        (tmp_path / f"net{suffix}").write_bytes(data)
        refuses(tmp_path / f"net{suffix}")


# Pickles that lie


class _Tensor:
    """Pickled as a tensor whose values are said to lie in a storage of some size."""

    def __init__(self, count: int, size: tuple, stride: tuple, offset: int = 0) -> None:
        self.count, self.rest = count, (offset, size, stride, False, {})

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (_Storage(self.count), *self.rest)


class _Storage:
    def __init__(self, count: int) -> None:
        self.count = count


class _Pickler(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, _Storage):
            return "storage", torch.FloatStorage, "0", "cpu", value.count
        return None


class _Call:
    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


def pickled_as(content) -> bytes:
    file = io.BytesIO()
    _Pickler(file, 2).dump(content)
    return file.getvalue()


def write_checkpoint(path: Path, content, data: bytes = bytes(24), script: bool = False) -> Path:
    """Write a checkpoint, or a TorchScript archive, around a pickle made here."""
    pickled = content if isinstance(content, bytes) else pickled_as(content)
    members = {"net/data.pkl": pickled, "net/data/0": data, "net/version": b"3\n"}
    return write_zip(path, members | ({"net/constants.pkl": pickled_as(())} if script else {}))


@pytest.mark.parametrize("script", [False, True])
@pytest.mark.parametrize(
    ("count", "size", "stride", "offset", "said"),
    [
        (10**12, (10**12,), (1,), 0, "bytes where it holds 24"),
        (7, (7,), (1,), 0, "bytes where it holds 24"),
        (6, (10**6, 10**6), (0, 0), 0, "where it holds 24"),
        (6, (3, 3), (2, 1), 0, "where it holds 24"),
        (6, (6,), (1,), 1, "where it holds 24"),
        (6, (6,), (1,), -1, None),
        (6, (-6,), (1,), 0, None),
        (6, (6,), (-1,), 5, None),
        (6, (2**62, 2**62), (1, 1), 0, None),
        (6, ("a",), (1,), 0, None),
        (-6, (6,), (1,), 0, None),
    ],
)
def test_tensors_larger_than_their_data(
    count, size, stride, offset, said, script, tmp_path
) -> None:
    path = tmp_path / ("net.jit" if script else "net.pt")
    good = write_checkpoint(path, {"weight": _Tensor(6, (3, 2), (2, 1))}, script=script)
    assert open_file(good).size == 6
    write_checkpoint(path, {"weight": _Tensor(count, size, stride, offset)}, script=script)
    refuses(path, said)


def legacy(content, storages: bytes) -> bytes:
    protocol = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    parts = (0x1950A86A20F9469CFC6C, 1001, protocol)
    return (
        b"".join(pickle.dumps(part, 2) for part in parts)
        + content
        + pickle.dumps(["0"] if storages else [], 2)
        + storages
    )


def test_the_old_form_does_not_allocate_what_it_says(tmp_path) -> None:
    class Pickler(_Pickler):
        def persistent_id(self, value):
            found = super().persistent_id(value)
            return found and (*found, None)

    def written(count: int) -> Path:
        file = io.BytesIO()
        Pickler(file, 2).dump({"weight": _Tensor(count, (count,), (1,))})
        data = struct.pack("<q", count) + np.ones(6, np.float32).tobytes()
        (tmp_path / "net.pt").write_bytes(legacy(file.getvalue(), data))
        return tmp_path / "net.pt"

    assert torch.equal(open_file(written(6)).tensors["weight"], torch.ones(6))
    refuses(written(10**13), "bytes where it holds")
    refuses(written(7), "bytes where it holds")


@pytest.mark.parametrize(
    "function", [bytearray, torch.FloatStorage, torch.Tensor, torch.UntypedStorage]
)
def test_a_pickle_makes_no_room(function, tmp_path) -> None:
    content = {"weight": _Tensor(6, (6,), (1,)), "x": _Call(function, 10**13)}
    assert open_file(write_checkpoint(tmp_path / "net.pt", content)).size == 6
    (tmp_path / "old.pt").write_bytes(pickled_as(_Call(function, 10**13)))
    refuses(tmp_path / "old.pt", "no mapping from names to tensors")


def nested(depth: int, kind: str) -> bytes:
    """Return the pickle of lists or dicts in each other, or of a mapping with nested tuples as its key."""
    empty, one, close = {"list": (b"]", b"]", b"a"), "dict": (b"}", b"}X\1\0\0\0a", b"s")}.get(
        kind, (b")",) * 3
    )
    if kind == "key":
        return b"\x80\x02}" + b")" + b"\x85" * depth + b"K\1s."
    return b"\x80\x02" + one * depth + empty + close * depth + b"."


@pytest.mark.parametrize("form", ["zip", "script", "old"])
@pytest.mark.parametrize("kind", ["list", "dict", "key"])
def test_deep_nesting_is_one_sentence(kind: str, form: str, tmp_path) -> None:
    for depth in (1_000, 10_000, 300_000):
        path = tmp_path / ("net.jit" if form == "script" else "net.pt")
        content = nested(depth, kind)
        if form == "old":
            path.write_bytes(legacy(content, b""))
        else:
            write_checkpoint(path, content, script=form == "script")
        refuses(path, "nested" if kind != "key" else "no mapping from|no floating-point tensor")


@pytest.mark.parametrize("script", [False, True])
def test_structures_that_hold_themselves_end(script: bool, tmp_path) -> None:
    loop: list = [{"inner": []}]
    loop[0]["inner"].append(loop)
    loop[0]["back"] = loop[0]
    path = tmp_path / ("net.jit" if script else "net.pt")
    refuses(write_checkpoint(path, loop, script=script))
    many: list = []
    for _ in range(60):
        many = [many, many]
    refuses(write_checkpoint(path, {"a": many}, script=script))


def test_pickles_end(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(inert_pickle, "STEPS", 50)
    refuses(write_checkpoint(tmp_path / "net.pt", b"\x80\x02" + b"N0" * 60 + b"}."), "too large")
    far = b"\x80\x02}r\xff\xff\xff\x7f."
    refuses(write_checkpoint(tmp_path / "net.pt", far), "no mapping")


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("where", ["content", "constants", "plain"])
def test_code_never_runs(where: str, tmp_path) -> None:
    made, path = tmp_path / "made", tmp_path / "net.pt"
    content = {"weight": _Tensor(6, (6,), (1,)), "x": _Touch(made)}
    if where == "plain":
        graph = open_file(write_checkpoint(path, content))
        assert graph.size == 6
        assert "its classes were not imported: posix.mkdir" in graph.notes
    else:
        write_checkpoint(path, content, script=True)
        if where == "constants":
            write_zip(path, members_of(path) | {"net/constants.pkl": pickled_as((_Touch(made),))})
        assert open_file(path).size == 6
    assert not made.exists()


def test_sparse_places_outside_their_tensor_are_refused(tmp_path) -> None:
    indices = torch.tensor([[0, 10**9]])
    with torch.sparse.check_sparse_tensor_invariants(False):
        bad = torch.sparse_coo_tensor(indices, torch.ones(2), (3,), check_invariants=False)
        torch.save({"weight": bad}, tmp_path / "net.pt")
    refuses(tmp_path / "net.pt", "broken")


# Headers that lie


def write_safetensors(path: Path, header, data: bytes = bytes(24)) -> Path:
    told = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(told).to_bytes(8, "little") + told + data)
    return path


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [6], "data_offsets": [0, 25]},
        {"dtype": "F32", "shape": [6], "data_offsets": [4, 24]},
        {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 24]},
        {"dtype": "F32", "shape": [-6], "data_offsets": [0, 24]},
        {"dtype": "F32", "shape": [6.0], "data_offsets": [0, 24]},
        {"dtype": "F32", "shape": 6, "data_offsets": [0, 24]},
        {"dtype": ["F32"], "shape": [6], "data_offsets": [0]},
        {"dtype": "F32", "shape": [2**40, 2**40, 0], "data_offsets": [0, 10**30]},
        {"shape": [6]},
        [],
        None,
        "F32",
    ],
)
def test_safetensors_headers_that_lie(entry, tmp_path) -> None:
    path = tmp_path / "net.safetensors"
    good = {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}
    assert open_file(write_safetensors(path, {"weight": good})).size == 6
    refuses(write_safetensors(path, {"weight": entry}), "no whole safetensors")
    refuses(write_safetensors(path, {"weight": good, "other": good}), "no whole safetensors")
    refuses(write_safetensors(path, b'{"a":' * 50_000), "nested too deep")


def test_array_headers_that_lie(tmp_path) -> None:
    good = array(np.ones(6, np.float32))
    for old, new in [
        (b"(6,)", b"(9,)"),
        (b"(6,)", b"(-6)"),
        (b"<f4", b"|O8"),
        (b"<f4", b"|V0"),
        (b"'f", b"[["),
    ]:
        write_zip(tmp_path / "net.npz", {"weight.npy": good.replace(old, new)})
        refuses(tmp_path / "net.npz")
        (tmp_path / "net.npy").write_bytes(good.replace(old, new))
        refuses(tmp_path / "net.npy")


def test_pickled_arrays_are_refused(tmp_path) -> None:
    np.savez(tmp_path / "net.npz", weight=np.ones(3), x=np.array([_Touch(tmp_path / "made")]))
    refuses(tmp_path / "net.npz", "'x.npy' holds pickled objects")
    assert not (tmp_path / "made").exists()


# Damage


def damaged(data: bytes, rng: Random) -> bytes:
    """Return bytes flipped, cut, moved or doubled at random, mostly near the ends, where headers lie."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        end = rng.choice([64, 1024, len(changed)])
        place = rng.randrange(min(end, len(changed)))
        place = place if rng.random() < 0.5 else len(changed) - 1 - place
        kind = rng.randrange(5)
        if kind <= 1:
            changed[place] = rng.randrange(256)
        elif kind == 2:
            changed[place : place + 8] = rng.choice(
                [bytes(8), b"\xff" * 8, struct.pack("<Q", 2 ** rng.randrange(64))]
            )
        elif kind == 3:
            del changed[place : place + rng.choice([1, 4, 100])]
        else:
            other = rng.randrange(len(changed))
            changed[place : place + 4] = changed[other : other + 16]
        if not changed:
            return b"\0"
    return bytes(changed)


def damaged_inside(data: bytes, rng: Random) -> bytes:
    """Return a whole zip file of which one member is damaged, so that what lies inside is reached."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        names = [name for name in old.namelist() if name.endswith((".pkl", ".npy"))]
        chosen = rng.choice(names)
        for info in old.infolist():
            inside = old.read(info)
            new.writestr(info, damaged(inside, rng) if info.filename == chosen else inside)
    return file.getvalue()


def survives(path: Path) -> bool:
    """Open and read a damaged file; only `SaneError` may come out. Tell whether it was read."""
    try:
        graph = open_file(path)
        for param, tensor in graph.items():
            assert tuple(tensor.shape) == param.shape
        graph.state_dict()
    except SaneError as error:
        assert "\n" not in str(error)
        return False
    return True


@pytest.fixture(scope="session")
def samples(tmp_path_factory) -> dict[str, bytes]:
    """Return small files of each form."""
    folder = tmp_path_factory.mktemp("samples")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))
    state = network.state_dict()
    torch.save({"state_dict": state}, folder / "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, folder / "net.safetensors")
    np.savez(folder / "net.npz", **{key: x.numpy() for key, x in state.items()})
    np.savez_compressed(folder / "packed.npz", **{key: x.numpy() for key, x in state.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = torch.quantize_per_tensor(torch.randn(3, 2), 0.1, 0, torch.qint8)
        torch.save(state | {"q": small, "s": torch.eye(3).to_sparse()}, folder / "new.pt")
        torch.jit.save(torch.jit.trace(network, torch.randn(4, 2, 3, 3)), folder / "net.jit")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    "name", ["net.jit", "net.npz", "net.safetensors", "new.pt", "old.pt", "packed.npz"]
)
def test_damage_gives_one_sentence_or_a_network(name: str, samples, tmp_path) -> None:
    cases = int(os.environ.get("SANE_FUZZ", "300"))
    rng, path = Random(name), tmp_path / name
    path.write_bytes(samples[name])
    assert survives(path)
    for _ in range(cases):
        inside = samples[name][:2] == b"PK" and rng.random() < 0.7
        path.write_bytes((damaged_inside if inside else damaged)(samples[name], rng))
        survives(path)
