"""GGUF files: the library's values, honest coverage, and nothing believed that a file cannot hold."""

import pickle
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import sane_gguf
import torch

from sane_plugins.errors import SourceError
from sane_plugins.features import embed
from sane_plugins.formats import files_read

ROWS = np.linspace(-2, 2, 4 * 512, dtype=np.float32).reshape(4, 512)
UNREADABLE = "Q8_K"  # the library has no code for it: products alone use it


def write(path: Path, tensors: dict[str, tuple[np.ndarray, str]], **metadata: object) -> Path:
    """Write arrays with the library, each in a type of GGML."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, str(metadata.pop("architecture", "llama")))
    writer.add_token_list([f"word {i}" for i in range(2000)])
    for key, value in metadata.items():
        writer.add_uint16(key.replace("_", "."), value)
    for name, (values, kind) in tensors.items():
        form = gguf.GGMLQuantizationType[kind]
        if values.dtype == np.float32 and kind != "F32":
            values = gguf.quants.quantize(values, form)
        writer.add_tensor(name, values, raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def raw(kind: str, seed: int = 0) -> np.ndarray:
    """Return random blocks of a type that the library reads and does not write."""
    gguf = pytest.importorskip("gguf")
    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rng = np.random.default_rng(seed)
    return rng.integers(0, 4, (4, 512 // block * nbytes)).astype(np.uint8)


@pytest.fixture
def network(tmp_path) -> Path:
    tensors = {
        "blk.0.attn_q.weight": (ROWS, "Q4_0"),
        "blk.0.attn_norm.weight": (ROWS[0], "F32"),
        "blk.0.ffn.weight": (raw("Q4_K"), "Q4_K"),
        "output.weight": (ROWS.astype(np.float16), "F16"),
    }
    return write(tmp_path / "net.gguf", tensors)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_values_are_those_of_the_library(kind: str, tmp_path) -> None:
    gguf = pytest.importorskip("gguf")
    values = ROWS.astype(np.float16) if kind == "F16" else ROWS
    path = write(tmp_path / "a", {"a.weight": (values, kind)})
    graph = sane_gguf.sane_open(path)
    form = gguf.GGMLQuantizationType[kind]
    right = gguf.quants.dequantize(gguf.quants.quantize(ROWS, form), form)
    assert np.array_equal(graph.tensors["a.weight"].float().numpy(), right)
    assert graph.params[0].shape == (4, 512)
    assert graph.params[0].dtype == graph.tensors["a.weight"].dtype
    is_plain = kind in ("F32", "F16", "BF16")
    assert graph.converted == ({} if is_plain else {"a.weight": f"dequantised from {kind}"})
    assert graph.coverage == 1


@pytest.mark.parametrize(
    "kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ2_S", "IQ4_NL", "TQ1_0"]
)
def test_types_that_are_only_read(kind: str, tmp_path) -> None:
    gguf = pytest.importorskip("gguf")
    graph = sane_gguf.sane_open(write(tmp_path / "a.gguf", {"a": (raw(kind), kind)}))
    right = gguf.quants.dequantize(raw(kind), gguf.GGMLQuantizationType[kind])
    assert np.array_equal(graph.tensors["a"].numpy(), right, equal_nan=True)


def test_shapes_come_in_the_order_of_torch(tmp_path) -> None:
    gguf = pytest.importorskip("gguf")
    values = np.arange(2 * 3 * 32, dtype=np.float32).reshape(2, 3, 32)
    path = write(tmp_path / "a.gguf", {"a": (values, "F32"), "b": (values, "Q8_0")})
    graph = sane_gguf.sane_open(path)
    assert [*gguf.GGUFReader(path).tensors[0].shape] == [32, 3, 2]
    assert [param.shape for param in graph.params] == [(2, 3, 32)] * 2
    assert torch.equal(graph.tensors["a"], torch.from_numpy(values))
    assert torch.allclose(graph.tensors["b"], torch.from_numpy(values), atol=1)


def test_what_the_library_cannot_read_is_missed_in_true_weights(network: Path) -> None:
    data = network.read_bytes()
    name = b"blk.0.attn_q.weight"
    kind = data.index(name) + len(name) + 4 + 16  # after the name: axes, two sizes, the type
    assert struct.unpack("<I", data[kind : kind + 4]) == (2,)
    network.write_bytes(data[:kind] + struct.pack("<I", 999) + data[kind + 4 :])
    graph = sane_gguf.sane_open(network)
    assert graph.missed == {name.decode(): 4 * 512}
    assert graph.untouched[name.decode()] == "type 999 values cannot be read"
    assert graph.coverage == pytest.approx(4608 / (4608 + 2048))
    assert sorted(graph.tensors) == sorted(param.key for param in graph.params)


def test_known_types_without_code_are_missed_too(tmp_path) -> None:
    tensors = {"a": (raw(UNREADABLE), UNREADABLE), "b": (ROWS, "F32"), "c": (ROWS, "Q8_0")}
    graph = sane_gguf.sane_open(write(tmp_path / "a.gguf", tensors))
    assert graph.missed == {"a": 2048}
    assert graph.coverage == pytest.approx(2 / 3)


def test_the_network_is_used_as_any_other(network: Path) -> None:
    graph = sane_gguf.sane_open(str(network))
    assert graph.container == "gguf"
    assert "declared as llama (GGUF)" in graph.notes
    assert embed(graph).tokens > 0
    assert network in files_read(graph)
    again = pickle.loads(pickle.dumps(graph.tensors))
    assert all(torch.equal(again[key], tensor) for key, tensor in graph.state_dict().items())
    network.unlink()  # it stays open
    assert graph.tensors["output.weight"].dtype == torch.float16


def test_content_decides_what_is_ours(network: Path, tmp_path) -> None:
    bare = network.rename(tmp_path / "weights.pt")
    assert sane_gguf.sane_open(bare).coverage == 1
    other = tmp_path / "other.gguf"
    other.write_bytes(b"nothing of the kind")
    with pytest.raises(SourceError, match="no GGUF file"):
        sane_gguf.sane_open(other)
    with pytest.raises(SourceError, match="it does not exist"):
        sane_gguf.sane_open(tmp_path / "none.gguf")
    for source in ("torchvision:resnet18", tmp_path, torch.nn.Linear(2, 2), 3, None, "a\0b"):
        assert sane_gguf.sane_open(source) is None


def test_all_parts_of_a_split_file_are_read(tmp_path) -> None:
    paths = [tmp_path / f"net-{i}-of-00003.gguf" for i in ("00001", "00002", "00003")]
    for i, path in enumerate(paths):
        write(path, {f"blk.{i}.weight": (ROWS + i, "F32")}, split_no=i, split_count=3)
    for path in paths:
        graph = sane_gguf.sane_open(path)
        assert {k: int(x[0, 0]) for k, x in graph.state_dict().items()} == {
            f"blk.{i}.weight": i - 2 for i in range(3)
        }
        assert {*paths} <= {*files_read(graph)}
    paths[1].unlink()
    with pytest.raises(SourceError, match=r"00002-of-00003\.gguf: it does not exist"):
        sane_gguf.sane_open(paths[0])
    with pytest.raises(SourceError, match="is not called so"):
        sane_gguf.sane_open(paths[0].rename(tmp_path / "net.gguf"))


def test_a_missing_library_is_told(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sane_gguf.find_spec", lambda _: None)
    with pytest.raises(SourceError, match=r"pip install 'sane-plugins\[gguf\]'"):
        sane_gguf.sane_open(network)


# Strangers' files


def header(tensors: int = 1, entries: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


def info(
    name: bytes = b"a", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0
) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return struct.pack("<Q", len(name)) + name + sizes + struct.pack("<IQ", kind, offset)


def padded(head: bytes, values: bytes = bytes(16)) -> bytes:
    return head + bytes(-len(head) % 32) + values


def entry(kind: int, value: bytes, key: bytes = b"k") -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


HUGE = 2**62
HOSTILE = {
    "nothing": b"GGUF",
    "many tensors": header(2**60),
    "more tensors than bytes": header(100_000) + bytes(1000),
    "many entries": header(1, 2**60) + info(),
    "no tensors": header(0),
    "long key": header(1, 1) + struct.pack("<Q", HUGE),
    "long name": padded(header() + struct.pack("<Q", HUGE)),
    "name of 2,000": padded(header() + info(b"x" * 2000)),
    "no text": padded(header() + info(b"\xff\xfe")),
    "huge size": padded(header() + info(shape=(HUGE, 1))),
    "huge product": padded(header() + info(shape=(2**40, 2**40))),
    "huge size, unknown type": padded(header() + info(shape=(HUGE,), kind=999)),
    "many axes": padded(header() + info(shape=(1,) * 40)),
    "2^32 axes": header() + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 2**32 - 1),
    "far offset": padded(header() + info(offset=2**63)),
    "beyond the end": padded(header() + info(offset=32)),
    "no whole block": padded(header() + info(shape=(4,), kind=2), bytes(64)),
    "one name": padded(header(2) + info() + info(offset=32), bytes(64)),
    "one place": padded(header(2) + info() + info(b"b"), bytes(64)),
    "overlap": padded(header(2) + info(shape=(16,)) + info(b"b", offset=32), bytes(64)),
    "alignment 0": padded(header(1, 1) + entry(4, bytes(4), b"general.alignment") + info()),
    "alignment of text": padded(
        header(1, 1) + entry(8, struct.pack("<Q", 1) + b"x", b"general.alignment") + info()
    ),
    "huge array": header(1, 1) + entry(9, struct.pack("<IQ", 4, HUGE)),
    "huge array of texts": header(1, 1) + entry(9, struct.pack("<IQ", 8, HUGE)) + bytes(10_000),
    "nested arrays": header(1, 1) + entry(9, struct.pack("<IQ", 9, 1) * 9 + bytes(99)),
    "wide nested arrays": header(1, 1) + entry(9, struct.pack("<IQ", 9, 2**20)) + bytes(2**22),
    "unknown value": header(1, 1) + entry(77, bytes(8)),
    "version 1": header(version=1),
    "version 9": header(version=9),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 1, 0),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_headers_are_one_sentence(kind: str, tmp_path) -> None:
    pytest.importorskip("gguf")
    path = tmp_path / "net.gguf"
    path.write_bytes(HOSTILE[kind])
    start = time.process_time()
    with pytest.raises(SourceError) as caught:
        sane_gguf.sane_open(path)
    assert time.process_time() - start < 6
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


def test_a_handmade_file_is_read(tmp_path) -> None:
    """The hostile ones above differ from it in one thing each."""
    pytest.importorskip("gguf")
    values = struct.pack("<4f", 1, 2, 3, 4)
    path = tmp_path / "net.gguf"
    path.write_bytes(padded(header(1, 1) + entry(4, struct.pack("<I", 32)) + info(), values))
    assert sane_gguf.sane_open(path).tensors["a"].tolist() == [1, 2, 3, 4]


def test_a_damaged_file_is_a_network_or_one_sentence(network: Path, tmp_path) -> None:
    data, rng = network.read_bytes(), np.random.default_rng(0)
    end = data.index(b"output.weight") + 60
    damaged = [data[: int(n)] for n in rng.integers(4, len(data), 100)]
    for place in rng.integers(4, end, 300):
        damaged.append(data[:place] + rng.bytes(1) + data[place + 1 :])
    for text in damaged:
        path = tmp_path / "damaged.gguf"
        path.write_bytes(text)
        try:
            graph = sane_gguf.sane_open(path)
            assert all(tensor is not None for tensor in graph.state_dict().values())
        except SourceError as error:
            assert "\n" not in str(error)
    with pytest.raises(SourceError, match="no whole GGUF file"):
        path.write_bytes(data[:-1])
        sane_gguf.sane_open(path)


def test_a_file_that_shrinks_while_it_is_open_is_told(network: Path) -> None:
    graph = sane_gguf.sane_open(network)
    with network.open("r+b") as file:
        file.truncate(network.stat().st_size - 100)
    with pytest.raises(SourceError, match=r"'output.weight' is broken"):
        graph.tensors["output.weight"]
