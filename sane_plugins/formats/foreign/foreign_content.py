"""What the first and the last bytes of a file say of forms that are not read."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sane_plugins.errors import SourceError
from sane_plugins.formats.archives import Archive

_HEAD, _TAIL = 2**16, 2**12
_HDF5 = b"\x89HDF\r\n\x1a\n"
_LEVELDB_END = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # of a table, as in a TensorFlow index
_VARINT, _BYTES = 0, 2  # wire types of protobuf
_Field = tuple[int, int, bytes]


@dataclass(frozen=True)
class FileEnds:
    """The first and the last bytes of a file; `path` is for what lies beside it."""

    path: Path
    head: bytes
    tail: bytes

    @classmethod
    def read(cls, path: Path) -> FileEnds:
        """Read them."""
        with path.open("rb") as file:
            head = file.read(_HEAD)
            file.seek(max(0, path.stat().st_size - _TAIL))
            return cls(path, head, file.read(_TAIL))


def is_readable_form(head: bytes) -> bool:
    """Return whether a file begins as safetensors, NumPy and GGUF do, whatever else it looks like."""
    is_safetensors = head[4:8] == bytes(4) and head[8:9] == b"{"
    return is_safetensors or head.startswith((b"\x93NUMPY", b"GGUF"))


def is_web_page(ends: FileEnds) -> bool:
    """Return whether it is HTML, as a failed download leaves it."""
    return ends.head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html"))


def is_keras_h5(ends: FileEnds) -> bool:
    """Return whether it is HDF5 with the description of a Keras model."""
    return ends.head.startswith(_HDF5) and b"model_config" in ends.head


def is_transformers_tensorflow(ends: FileEnds) -> bool:
    """Return whether it is HDF5 beside a `config.json`, as transformers keeps weights of TensorFlow."""
    has_config = ends.path.with_name("config.json").is_file()
    return ends.head.startswith(_HDF5) and b"model_config" not in ends.head and has_config


def is_keras_zip(ends: FileEnds) -> bool:
    """Return whether it is Keras 3's zip archive."""
    return {"metadata.json", "config.json", "model.weights.h5"} <= _members(ends)


def is_other_zip(ends: FileEnds) -> bool:
    """Return whether it is a zip archive with files at its top: torch's have a folder, NumPy's arrays."""
    members = _members(ends)
    ours = (".npy", "data.pkl", "serialized_state_dict.pt", "serialized_state_dict.json")
    return bool(members) and not any(name.endswith(ours) for name in members)


def is_tar(ends: FileEnds) -> bool:
    """Return whether it is a tar archive."""
    return ends.head[257:262] == b"ustar"


def is_saved_model(ends: FileEnds) -> bool:
    """Return whether it is TensorFlow's `SavedModel` message: a version, then a graph with its tags."""
    is_named = (
        ends.path.name == "saved_model.pb"
    )  # its first field may be that of Core ML's message
    tags = _inner_tags(ends)
    return _starts_with_version(ends) and (is_named or tags in ((1, 2), (1, 4), (1, 5)))


def is_core_ml(ends: FileEnds) -> bool:
    """Return whether it is Core ML's `Model` message: a version, then the description of its inputs."""
    return _starts_with_version(ends) and _inner_tags(ends) == (1, 1)


def is_onnx(ends: FileEnds) -> bool:
    """Return whether it is ONNX's `ModelProto`: a version, who wrote it, and a graph or its operators."""
    numbers = {number for number, wire, _ in _fields(ends.head) if wire == _BYTES}
    return (
        _starts_with_version(ends) and bool({7, 8} & numbers) and numbers <= {2, 3, 4, 6, 7, 8, 14}
    )


def is_graph_def(ends: FileEnds) -> bool:
    """Return whether it is TensorFlow's `GraphDef`: nodes, each with its name and its operation."""
    outer = next(_fields(ends.head), (0, 0, b""))
    inner = [*islice(_fields(outer[2]), 2)] if outer[:2] == (1, 2) else []
    texts = [value for number, wire, value in inner if (number, wire) in ((1, 2), (2, 2))]
    return len(texts) == 2 and re.fullmatch(rb"[A-Z_]\w+", texts[1]) is not None


def is_tensorflow_checkpoint(ends: FileEnds) -> bool:
    """Return whether it is the index of a TensorFlow checkpoint, or its values beside one."""
    values = re.fullmatch(r"(.*)\.data-\d{5}-of-\d{5}", ends.path.name)
    beside = ends.path.with_name(f"{values[1]}.index") if values else ends.path
    return (beside != ends.path and beside.is_file()) or ends.tail.endswith(_LEVELDB_END)


def is_paddle_program(ends: FileEnds) -> bool:
    """Return whether it is Paddle's `ProgramDesc` (whose first block has no parent), PIR, or parameters."""
    outer = next(_fields(ends.head), (0, 0, b""))
    is_program = outer[:2] == (1, 2) and outer[2].startswith(
        b"\x08\x00\x10" + b"\xff" * 9 + b"\x01"
    )
    length = int.from_bytes(ends.head[16:20], "little")
    is_newer = ends.head[:1] == b"{" and b'"pir"' in ends.head[:200]
    return (
        is_program
        or is_newer
        or (ends.head[:16] == bytes(16) and 2 <= length <= 256 and ends.head[20:21] == b"\x08")
    )


def is_paddle_pickle(ends: FileEnds) -> bool:
    """Return whether it is a pickled state dict of Paddle."""
    mark = b"StructuredToParameterName@@"
    return ends.head.startswith(b"\x80") and (mark in ends.head or mark in ends.tail)


def is_flax(ends: FileEnds) -> bool:
    """Return whether it is msgpack's mapping from names to arrays, as Flax writes it."""
    head = ends.head
    is_map = bool(head) and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF))
    key = head[{0xDE: 3, 0xDF: 5}.get(head[0], 1) :][:1] if is_map else b""
    is_name = key != b"" and (0xA1 <= key[0] <= 0xBF or key[0] == 0xD9)
    return is_name and re.search(rb"[\xa7\xa8](?:float(?:16|32|64)|bfloat16)", head) is not None


def is_openvino(ends: FileEnds) -> bool:
    """Return whether it is OpenVINO's description of a network, or the values beside one."""
    return _is_openvino_xml(ends.head) or _is_openvino_xml(_head_beside(ends, ".xml"))


def is_ncnn_weights(ends: FileEnds) -> bool:
    """Return whether a description of ncnn lies beside it."""
    return _head_beside(ends, ".param").startswith(b"7767517\n")


def is_mnn(ends: FileEnds) -> bool:
    """Return whether it is MNN's: its flatbuffer has no mark, so the suffix must say so too."""
    offset = int.from_bytes(ends.head[:4], "little")
    return ends.path.suffix.lower() == ".mnn" and 4 <= offset < 256


def is_tensorflow_js(ends: FileEnds) -> bool:
    """Return whether it is the description of a network for TensorFlow.js."""
    marks = (b'"modelTopology"', b'"weightsManifest"')
    return ends.head[:1] == b"{" and any(x in ends.head or x in ends.tail for x in marks)


def is_mxnet(ends: FileEnds) -> bool:
    """Return whether it is a list of MXNet's arrays."""
    return ends.head[:16] == (0x112).to_bytes(8, "little") + bytes(8)


def is_sklearn(ends: FileEnds) -> bool:
    """Return whether it is a pickle, perhaps packed by joblib, whose first class is scikit-learn's."""
    head = ends.head
    if head[:1] == b"x" and int.from_bytes(head[:2], "big") % 31 == 0:  # zlib
        with suppress(zlib.error):
            head = zlib.decompressobj().decompress(head, 256)
    found = re.search(rb"(?:c|\x8c.)([a-z_]\w*(?:\.\w+)*)[\n\x94]", head[:256], re.DOTALL)
    is_theirs = found is not None and found[1].split(b".")[0] == b"sklearn"
    return head.startswith(b"\x80") and is_theirs


def is_trees(ends: FileEnds) -> bool:
    """Return whether it is a model of LightGBM, XGBoost or CatBoost."""
    head = ends.head.lstrip()
    return head.startswith((b"tree\nversion=", b"CBM1")) or (
        head[:1] == b"{" and b"learner" in head[:64]
    )


def _members(ends: FileEnds) -> set[str]:
    """Return the names in a zip archive; none where the first of them lies in a folder, as torch's do."""
    name = ends.head[30 : 30 + int.from_bytes(ends.head[26:28], "little")]
    if not ends.head.startswith(b"PK\3\4") or b"/" in name or name.endswith(b".npy"):
        return set()
    with suppress(SourceError):
        return {*Archive(ends.path).members}
    return set()


def _head_beside(ends: FileEnds, suffix: str) -> bytes:
    """Return how the file of the same name with another suffix begins; nothing where there is none."""
    path = ends.path.with_suffix(suffix)
    if path == ends.path or not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(1024)


def _is_openvino_xml(head: bytes) -> bool:
    return re.match(rb"\s*(?:<\?xml[^>]*>\s*)?<net\b", head) is not None


def _starts_with_version(ends: FileEnds) -> bool:
    first = next(_fields(ends.head), (0, 0, b""))
    return first[:2] == (1, _VARINT) and 0 < first[2][0] <= 20


def _inner_tags(ends: FileEnds) -> tuple[int, int]:
    """Return the numbers of the first fields in the second field of a message, and in that."""
    second = [*islice(_fields(ends.head), 1, 2)]
    if not second or second[0][:2] != (2, _BYTES):
        return 0, 0
    inner = next(_fields(second[0][2]), (0, 0, b""))
    return inner[0], next(_fields(inner[2]), (0, 0, b""))[0]


def _fields(data: bytes) -> Iterator[_Field]:
    """Yield number, wire type and bytes of the fields of a protobuf message, whose last may be cut."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, wire = tag >> 3, tag & 7
        if not number or wire not in (_VARINT, _BYTES):
            return
        value, place = _varint(data, place)
        if wire == _BYTES:
            yield number, wire, data[place : place + value]
            place += value
        else:
            yield number, wire, bytes([min(value, 255)])


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Return a number of protobuf and the place behind it; 0 where the data end."""
    value = shift = 0
    while place < len(data) and shift < 64:
        value |= (data[place] & 127) << shift
        place, shift = place + 1, shift + 7
        if data[place - 1] < 128:
            return value, place
    return 0, len(data)
