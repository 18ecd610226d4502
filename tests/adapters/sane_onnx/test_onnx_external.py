"""Values beside an ONNX file: every trick that a model can play with names, links, sizes and files."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sane_plugins.errors import SourceError

onnx = pytest.importorskip("onnx")
from sane_onnx.model_file.external_data import ExternalFiles  # noqa: E402

VALUES = bytes(range(64))
_POSIX = pytest.mark.skipif(os.name != "posix", reason="needs links, pipes and devices")
_opened: list[Path] | None = None


def _record(event: str, args: tuple) -> None:
    if _opened is not None and event == "open" and isinstance(args[0], str | bytes | os.PathLike):
        _opened.append(Path(os.path.realpath(os.fsdecode(args[0]))))


sys.addaudithook(_record)  # it cannot be taken out again, so it sleeps between the tests


@pytest.fixture
def opened() -> Iterator[list[Path]]:
    """Record the real path of every file that is opened."""
    global _opened
    _opened = []
    yield _opened
    _opened = None


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a model's path, with its data beside it and a secret outside of its folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "data.bin").write_bytes(VALUES)
    (tmp_path / "secret.bin").write_bytes(b"secret42" * 8)
    path = folder / "net.onnx"
    path.write_bytes(b"a model")
    return path


def tensor(location: str | None = "data.bin", name: str = "weight", **entries: object):
    """Return a tensor that says where its values lie."""
    made = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[16])
    made.data_location = onnx.TensorProto.EXTERNAL
    given = {} if location is None else {"location": location}
    for key, value in {**given, **entries}.items():
        made.external_data.add(key=key, value=str(value))
    return made


def refusal(model: Path, made, needed: int = 64) -> str:
    """Check that both ways refuse in one sentence that names the model and the tensor."""
    told = []
    for ask in ("require", "read"):
        with pytest.raises(SourceError) as caught:
            getattr(ExternalFiles(model), ask)(made, needed)
        told.append(str(caught.value))
    assert told[0] == told[1]
    assert "\n" not in told[0] and str(model) in told[0] and "tensor '" in told[0]
    assert "secret42" not in told[0]
    return told[0]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({}, VALUES),
        ({"offset": 8}, VALUES[8:]),
        ({"offset": "008", "length": 56}, VALUES[8:]),
        ({"length": 64, "checksum": "anything"}, VALUES),
        # What exporters and engines add on top says nothing about the values.
        ({"basepath": "/etc", "prepacked_0": "x|0|64"}, VALUES),
        ({"offset": 64, "length": 0}, b""),
        ({"offset": 64}, b""),
    ],
)
def test_bytes_are_the_ones_asked_for(model: Path, entries: dict, expected: bytes) -> None:
    files = ExternalFiles(model)
    made = tensor(**entries)
    files.require(made, len(expected))
    values = files.read(made, len(expected))
    assert isinstance(values, bytearray) and values == expected


@pytest.mark.parametrize(
    "name", ["sub/data.bin", "./sub/./data.bin", "sub//data.bin", "größe 数据.bin"]
)
def test_plain_names_and_folders_are_found(model: Path, name: str) -> None:
    place = model.parent / name
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(VALUES)
    assert ExternalFiles(model).read(tensor(name), 64) == VALUES


@pytest.mark.parametrize(
    "location",
    [
        "../secret.bin",
        "sub/../../secret.bin",
        "./../secret.bin",
        "a/../../secret.bin",
        "..",
        "data.bin/..",
        "x/../data.bin",
        "/etc/passwd",
        "//etc/passwd",
        "C:/secret.bin",
        "C:secret.bin",
        "..\\secret.bin",
        "\\\\host\\share\\x",
        "a\\..\\..\\secret.bin",
        "",
        "data.bin\0",
        "\0",
    ],
)
def test_names_that_are_no_plain_relative_path_are_refused(
    model: Path, location: str, opened: list[Path]
) -> None:
    (model.parent / "sub").mkdir()
    assert "no relative path of plain names" in refusal(model, tensor(location))
    assert not opened


@pytest.mark.parametrize(
    "location",
    [
        "missing.bin",
        ".",
        "sub",
        "data.bin/x",
        "x" * 5000,
        "~/secret.bin",
        "$HOME",
        "%2e%2e/secret.bin",
        "\u202esecret",
        "data.bin\n",
        "https://example.com/x",
        "file:data.bin",
        "．．/secret.bin",
    ],
)
def test_names_without_a_file_are_refused(model: Path, location: str, opened: list[Path]) -> None:
    (model.parent / "sub").mkdir()
    assert len(refusal(model, tensor(location))) < 1000
    assert not opened


def test_values_without_a_place_are_refused(model: Path) -> None:
    assert "no relative path" in refusal(model, tensor(None))
    assert "memory of the program" in refusal(model, tensor("*/_ORT_MEM_ADDR_/*", offset=140123))


def test_bytes_that_are_no_text_are_refused(model: Path) -> None:
    entry = b"\x0a\x08location\x12\x03da\xff"
    raw = b"\x6a" + bytes([len(entry)]) + entry  # field 13, external_data
    made = onnx.TensorProto.FromString(tensor(None).SerializeToString() + raw)
    assert "no text" in refusal(model, made)


@pytest.mark.parametrize("key", ["location", "offset", "length"])
def test_a_key_given_twice_is_refused(model: Path, key: str) -> None:
    made = tensor(offset=0, length=64)
    made.external_data.add(key=key, value="0")
    assert f"more than one {key}" in refusal(model, made)


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": -1},
        {"length": -64},
        {"offset": 65},
        {"offset": 1},
        {"length": 63},
        {"length": 10**12},
        {"offset": 2**63},
        {"offset": 2**64},
        {"offset": 2**63 - 1, "length": 64},
        {"offset": "9" * 5000},
        {"offset": ""},
        {"offset": " 8"},
        {"offset": "8\n"},
        {"offset": "0x8"},
        {"offset": "8.0"},
        {"offset": "1e1"},
        {"offset": "+8"},
        {"offset": "1_0"},
        {"offset": "٨"},
        {"length": "all"},
        {"length": "64\0"},
        {"length": 0},
    ],
)
def test_offsets_and_lengths_that_do_not_fit_are_refused(
    model: Path, entries: dict, opened: list[Path]
) -> None:
    refusal(model, tensor(**entries))
    assert not opened


def test_shapes_beyond_the_file_are_refused(model: Path) -> None:
    for needed in (65, 10**12, 2**63, 10**30):
        assert "has 64 bytes" in refusal(model, tensor(), needed)


@_POSIX
@pytest.mark.parametrize("kind", ["file", "folder", "chain"])
def test_links_that_lead_out_are_refused(model: Path, kind: str, opened: list[Path]) -> None:
    folder, secret = model.parent, model.parents[1] / "secret.bin"
    location = "link"
    if kind == "file":
        (folder / "link").symlink_to(secret)
    elif kind == "folder":
        (folder / "link").symlink_to(secret.parent)
        location = "link/secret.bin"
    else:
        (folder / "link").symlink_to("second")
        (folder / "second").symlink_to(Path("..", "secret.bin"))
    assert "outside of the model's folder" in refusal(model, tensor(location))
    assert secret not in opened


@_POSIX
def test_links_that_stay_inside_are_followed(model: Path) -> None:
    (model.parent / "link").symlink_to("data.bin")
    assert ExternalFiles(model).read(tensor("link"), 64) == VALUES


@_POSIX
@pytest.mark.parametrize("target", ["loop", "gone", "/dev/zero", "/dev/stdin", "/proc/self/mem"])
def test_links_to_nothing_and_to_devices_are_refused(
    model: Path, target: str, opened: list[Path]
) -> None:
    (model.parent / "loop").symlink_to(target)
    refusal(model, tensor("loop"))
    assert not opened


@_POSIX
def test_pipes_sockets_and_folders_do_not_block(model: Path, opened: list[Path]) -> None:
    os.mkfifo(model.parent / "pipe")
    (model.parent / "sub").mkdir()
    for location in ("pipe", "sub", "sub/"):
        assert "no regular file" in refusal(model, tensor(location), 0)
    assert not opened


@_POSIX
def test_a_pipe_put_in_place_of_a_checked_file_does_not_block(model: Path, monkeypatch) -> None:
    data, real_open = model.parent / "data.bin", os.open

    def swapped(path, *args, **kwargs):
        data.unlink()
        os.mkfifo(data)
        return real_open(path, *args, **kwargs)

    files = ExternalFiles(model)
    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(SourceError, match="changed since"):
        files.read(tensor(), 64)


@_POSIX
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_put_in_place_of_what_was_checked_gives_nothing(
    model: Path, monkeypatch, what: str
) -> None:
    sub, secrets, real_open = model.parent / "sub", model.parents[1] / "secrets", os.open
    for folder in (sub, secrets):
        folder.mkdir()
        (folder / "data.bin").write_bytes(b"secret42" * 8)

    def swapped(path, *args, **kwargs):
        place = sub if what == "folder" else sub / "data.bin"
        place.rename(place.with_name("moved"))
        place.symlink_to(secrets if what == "folder" else secrets / "data.bin")
        return real_open(path, *args, **kwargs)

    files = ExternalFiles(model)
    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(SourceError) as caught:
        files.read(tensor("sub/data.bin"), 64)
    assert "secret42" not in str(caught.value)


def test_a_file_that_changed_is_refused(model: Path) -> None:
    data, files = model.parent / "data.bin", ExternalFiles(model)
    files.require(tensor(), 64)
    data.write_bytes(VALUES[:-1])
    with pytest.raises(SourceError, match="changed since"):
        files.read(tensor(), 64)
    with pytest.raises(SourceError, match="changed since"):
        files.require(tensor(), 32)
    data.write_bytes(VALUES[::-1])
    os.utime(data, ns=(0, 0))
    with pytest.raises(SourceError, match="changed since"):
        files.read(tensor(), 64)
    data.unlink()
    with pytest.raises(SourceError, match="cannot be read"):
        files.read(tensor(), 64)


def test_a_file_that_shrinks_while_it_is_read_is_refused(model: Path, monkeypatch) -> None:
    data, real = model.parent / "data.bin", os.fdopen

    def shrunk(*args, **kwargs):
        with data.open("r+b") as file:
            file.truncate(10)
        return real(*args, **kwargs)

    monkeypatch.setattr(os, "fdopen", shrunk)
    with pytest.raises(SourceError, match="ended too early"):
        ExternalFiles(model).read(tensor(), 64)


def test_a_file_that_may_not_be_read_is_refused(model: Path, monkeypatch) -> None:
    if os.name == "posix" and os.geteuid():
        (model.parent / "data.bin").chmod(0)
    else:  # root may read anything

        def denied(*_: object, **__: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", denied)
    with pytest.raises(SourceError, match=r"cannot be read \(Permission denied\)"):
        ExternalFiles(model).read(tensor(), 64)


@_POSIX
def test_a_hard_link_is_the_file_itself(model: Path) -> None:
    # conda and uv install packages, models in them included, by hard links.
    os.link(model.parents[1] / "secret.bin", model.parent / "linked.bin")
    assert ExternalFiles(model).read(tensor("linked.bin"), 64) == b"secret42" * 8


def _cache(folder: Path, repository: str) -> Path:
    """Make what huggingface_hub keeps of a repository; return the model in it."""
    repo = folder / repository
    (repo / "blobs").mkdir(parents=True)
    (repo / "blobs" / "0a").write_bytes(b"a model")
    (repo / "blobs" / "0b").write_bytes(VALUES)
    inner = repo / "snapshots" / "rev" / "onnx"
    inner.mkdir(parents=True)
    for name, blob in (("net.onnx", "0a"), ("net.onnx_data", "0b")):
        (inner / name).symlink_to(Path("..", "..", "..", "blobs", blob))
    return inner / "net.onnx"


@_POSIX
@pytest.mark.parametrize("is_link", [True, False])
def test_a_hugging_face_cache_is_read(tmp_path: Path, is_link: bool) -> None:
    model = _cache(tmp_path, "models--me--net")
    if not is_link:
        model.unlink()
        model.write_bytes(b"a model")
    assert ExternalFiles(model).read(tensor("net.onnx_data"), 64) == VALUES


@_POSIX
def test_a_cache_reached_by_a_link_and_relative_paths_is_read(tmp_path: Path, monkeypatch) -> None:
    model = _cache(tmp_path / "disk", "models--me--net")
    (tmp_path / "hub").symlink_to("disk")
    monkeypatch.chdir(tmp_path)
    files = ExternalFiles(Path("hub") / model.relative_to(tmp_path / "disk"))
    monkeypatch.chdir("/")
    assert files.read(tensor("net.onnx_data"), 64) == VALUES


@_POSIX
@pytest.mark.parametrize("is_link", [True, False])
def test_another_repository_is_out_of_reach(
    tmp_path: Path, is_link: bool, opened: list[Path]
) -> None:
    model, other = _cache(tmp_path, "models--me--net"), _cache(tmp_path, "models--you--private")
    if not is_link:
        model.unlink()
        model.write_bytes(b"a model")
    blob = other.parents[3] / "blobs" / "0b"
    (tmp_path / "token").write_bytes(VALUES)
    opened.clear()
    for target in (blob, other.with_name("net.onnx_data"), tmp_path / "token"):
        link = model.with_name("link")
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert "outside of the model's folder" in refusal(model, tensor("link"))
    assert not opened


@_POSIX
def test_a_store_that_is_a_link_opens_no_door(tmp_path: Path) -> None:
    model = _cache(tmp_path / "hub", "models--me--net")
    (tmp_path / "secret.bin").write_bytes(VALUES)
    repo = model.parents[3]
    model.unlink()
    model.write_bytes(b"a model")
    shutil.rmtree(repo / "blobs")
    (repo / "blobs").symlink_to(tmp_path)
    model.with_name("link").symlink_to(repo / "blobs" / "secret.bin")
    assert "outside of the model's folder" in refusal(model, tensor("link"))


@_POSIX
def test_a_model_that_is_a_link_reads_beside_the_link_or_the_file(
    tmp_path: Path, model: Path
) -> None:
    link = tmp_path / "links" / "net.onnx"
    link.parent.mkdir()
    link.symlink_to(model)
    assert ExternalFiles(link).read(tensor(), 64) == VALUES
    (link.parent / "data.bin").write_bytes(VALUES[::-1])
    assert ExternalFiles(link).read(tensor(), 64) == VALUES[::-1]
    (link.parent / "up").symlink_to(tmp_path / "secret.bin")
    assert "outside of the model's folder" in refusal(link, tensor("up"))


def test_tensors_together_may_not_claim_far_more_than_there_is(model: Path) -> None:
    size = 2**20
    (model.parent / "data.bin").write_bytes(b"\0" * size)
    files = ExternalFiles(model)
    tied = [tensor(name="") for _ in range(6)]
    for made in tied[:5]:
        for _ in range(3):  # what is read again counts once
            assert len(files.read(made, size)) == size
    with pytest.raises(SourceError, match="at most 4 times"):
        files.require(tied[5], size)


def test_files_under_two_names_count_once(model: Path) -> None:
    size, folder = 2**20, model.parent
    (folder / "data.bin").write_bytes(b"\0" * size)
    for i in range(6):
        try:
            os.link(folder / "data.bin", folder / f"{i}.bin")
        except OSError:
            pytest.skip("this file system has no hard links")
    files, made = ExternalFiles(model), [tensor(f"{i}.bin") for i in range(6)]
    for one in made[:5]:
        files.require(one, size)
    with pytest.raises(SourceError, match="at most 4 times"):
        files.require(made[5], size)


def test_memory_that_is_not_there_is_told(model: Path, monkeypatch) -> None:
    def none(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("sane_onnx.model_file.external_data._read_exactly", none)
    with pytest.raises(SourceError, match="memory has room"):
        ExternalFiles(model).read(tensor(), 64)


def _tensors(model: Path) -> list:
    graph = onnx.load(model, load_external_data=False).graph
    return [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]


def _size(made) -> int:
    values = 1
    for n in made.dims:
        values *= n
    return values * onnx.helper.tensor_dtype_to_np_dtype(made.data_type).itemsize


def test_a_real_file_gives_the_values_that_onnx_reads(sane_data: Path) -> None:
    path = sane_data / "onnx" / "onnxruntime_testdata" / "conv_qdq_external_ini.onnx"
    files, whole = ExternalFiles(path), {t.name: t for t in onnx.load(path).graph.initializer}
    found = _tensors(path)
    assert found
    for made in found:
        files.require(made, _size(made))
        assert files.read(made, _size(made)) == whole[made.name].raw_data


@pytest.mark.parametrize(
    "name",
    [
        "test_arbitrary_external_file",
        "test_evil_weights",
        "model_with_external_initializer_come_from_user",
    ],
)
def test_hostile_files_open_nothing_outside(sane_data: Path, name: str, opened: list[Path]) -> None:
    path = sane_data / "onnx" / "onnxruntime_testdata" / f"{name}.onnx"
    found = _tensors(path)
    assert found
    files = ExternalFiles(path)
    opened.clear()
    for made in found:
        with pytest.raises(SourceError) as caught:
            files.read(made, _size(made))
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not opened


def test_a_tensor_with_values_in_two_places_is_saved_with_those_beside(tmp_path: Path) -> None:
    from sane_onnx import sane_open, sane_save

    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = helper.make_tensor("w", kind, [4, 4], bytes(64), raw=True)
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="data.bin")
    values = [helper.make_tensor_value_info(name, kind, [1, 4]) for name in "xy"]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "net", values[:1], values[1:], [weight])
    (tmp_path / "net.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    (tmp_path / "data.bin").write_bytes(VALUES)
    network = sane_open(tmp_path / "net.onnx")
    assert network is not None
    sane_save(network, tmp_path / "out.onnx", None, None)
    saved = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer[0]
    assert not saved.raw_data
    again = sane_open(tmp_path / "out.onnx")
    assert again is not None
    assert again.tensors["w"].numpy().tobytes() == VALUES
