"""Damage to zip archives and what lies in them: members, pickles and NumPy headers."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import warnings
import zipfile
from random import Random
from typing import Any

import torch
from fuzz.case import NAMES, NUMBERS, Case, Mutation
from fuzz.headers import any_json

_BOMB = 200_000_000
# Each would leave a trace that the guard sees, if it were ever called.
_GLOBALS = (
    b"cposix\nsystem\n",
    b"csubprocess\nPopen\n",
    b"cbuiltins\nexec\n",
    b"cbuiltins\neval\n",
    b"cos\nmkdir\n",
    b"ctorch\nload\n",
    b"ctorch.jit\nload\n",
    b"cbuiltins\ngetattr\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\ndevice\n",
    b"c_codecs\nencode\n",
    b"ctorch._utils\n_rebuild_sparse_tensor\n",
    b"ctorch._utils\n_rebuild_qtensor\n",
    b"ctorch.storage\n_load_from_bytes\n",
    b"ctorch.nn.modules.linear\nLinear\n",
    b"cnumpy._core.multiarray\n_reconstruct\n",
    b"ctorch._tensor\n_rebuild_from_type_v2\n",
)
_OPCODES = (
    b"()0123456789.BCIJKLMNQRSTUVXabcdeghijlopqrstu}]\x80\x81\x85\x86\x87\x88\x89\x8a\x94\x95"
)
_Members = dict[str, bytes]


def members(case: Case) -> None:
    """Rename, drop, exchange, refill or damage the members of an archive."""
    found = _read(case)
    if not found:
        return
    for _ in range(case.rng.choice((1, 1, 2))):
        _change_member(case, found)
    _write(case, found)


def bomb(case: Case) -> None:
    """Pack a member far beyond its stored size, or claim that it is."""
    found = _read(case)
    if not found:
        return
    name = case.rng.choice(list(found))
    if case.rng.random() < 0.3:
        head = found[name][:200] if name.endswith((".npy", ".pkl")) else b""
        found[name] = head + bytes(_BOMB)
        _write(case, found, zipfile.ZIP_DEFLATED)
        return
    _write(case, found)
    _claim(case)


def pickled(case: Case) -> None:
    """Change opcodes, strings and numbers of a pickle; put calls into it."""
    found = _read(case)
    name = next((n for n in sorted(found) if n.endswith("data.pkl")), "")
    if not name:
        case.path.write_bytes(_pickle(case.rng, case.path.read_bytes()))
        return
    if case.rng.random() < 0.3:
        name = case.rng.choice([n for n in found if n.endswith(".pkl")])
    found[name] = _pickle(case.rng, found[name])
    _write(case, found)


def told(case: Case) -> None:
    """Change what the JSON of an exported program says of its tensors, or put a checkpoint in its place."""
    found = _read(case)
    names = [name for name in found if name.endswith("_config.json")]
    if not names or case.rng.random() < 0.1:
        inner = case.rng.choice([name for name in found if name.endswith(".pt")] or [*found])
        found[inner] = _pickle(case.rng, found[inner])
    for name in case.rng.sample(names, min(len(names), 1)):
        text = json.loads(found[name])
        for _ in range(case.rng.choice((1, 1, 3))):
            _change_json(case.rng, text)
        found[name] = json.dumps(text).encode()
    _write(case, found)


def _change_json(rng: Random, part: Any) -> None:
    """Replace one value somewhere inside."""
    while isinstance(part, dict | list) and part:
        key = rng.choice([*part] if isinstance(part, dict) else range(len(part)))
        if not isinstance(part[key], dict | list) or rng.random() < 0.15:
            part[key] = any_json(rng)
            return
        part = part[key]


def nested(case: Case) -> None:
    """Save something else altogether: odd tensors in odd containers, some of which hold themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls some of its own types prototypes
        content = _content(case.rng, 4)
        try:
            torch.save(content, case.path, _use_new_zipfile_serialization=case.rng.random() < 0.7)
        except (RuntimeError, RecursionError, TypeError, ValueError):
            torch.save({"w": torch.ones(2, 2)}, case.path)


def numpy_header(case: Case) -> None:
    """Change what an array says of its type, shape and order."""
    found = _read(case)
    name = case.rng.choice([n for n in found if n.endswith(".npy")] or [""])
    if not name:
        return
    old = found[name]
    shape = tuple(
        case.rng.choice((*NUMBERS, 2, 3, 4)) for _ in range(case.rng.choice((0, 1, 2, 3, 40)))
    )
    kinds = (
        "<f4",
        ">f8",
        "|O",
        "<U9",
        "<f2",
        "|V7",
        "<M8[s]",
        "<c16",
        "[('a','<f4')]",
        "<i1",
        "f16",
    )
    told = {
        "descr": case.rng.choice(kinds),
        "fortran_order": case.rng.random() < 0.5,
        "shape": shape,
    }
    text = repr(told) if case.rng.random() < 0.8 else _odd_text(case.rng, told)
    version = case.rng.choice((1, 1, 1, 2, 3, 0, 255))
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    found[name] = b"\x93NUMPY" + bytes([version, 0]) + size + text.encode() + old[128:]
    _write(case, found)


def _odd_text(rng: Random, told: dict[str, Any]) -> str:
    return rng.choice(
        (
            "__import__('os').system('true')",
            "(" * 300,
            "{}",
            "[1]",
            "'" * 5,
            repr({**told, "x": 1}),
            repr(told).replace("(", "((")[:-1],
            "9" * 6000,
            "{'descr': 1, 'fortran_order': 2, 'shape': 3}",
        )
    )


def _read(case: Case) -> _Members:
    """Return the members of an archive; none where it is no archive, such as an old checkpoint."""
    try:
        with zipfile.ZipFile(case.path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, NotImplementedError):
        return {}


def _write(case: Case, found: _Members, method: int = zipfile.ZIP_STORED) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(case.path, "w", method) as archive:
        warnings.simplefilter("ignore")  # two members of one name are meant
        for name, data in found.items():
            info = zipfile.ZipInfo(name.rstrip("\x01") or "x")
            info.compress_type = method if case.rng.random() < 0.95 else zipfile.ZIP_DEFLATED
            archive.writestr(info, data)


def _change_member(case: Case, found: _Members) -> None:
    rng, names = case.rng, list(found)
    name, other, kind = rng.choice(names), rng.choice(names), rng.randrange(7)
    if kind == 0:
        found[rng.choice((f"../{name}", f"/{name}", case.outside(), f"{name}/x", name.upper()))] = (
            found.pop(name)
        )
    elif kind == 1 and len(found) > 1:
        found.pop(name)
    elif kind == 2:
        found[name], found[other] = found[other], found[name]
    elif kind == 3:
        found[name] = case.any_bytes() * rng.choice((0, 1, 3))
    elif kind == 4:
        found[f"{name}\x01"] = found[other]  # the same name a second time
    elif kind == 5:
        start = rng.randrange(max(len(found[name]), 1))
        found[name] = found[name][:start] + case.any_bytes() + found[name][start:]
    else:
        root = name.partition("/")[0]
        extra = (
            "byteorder",
            "constants.pkl",
            ".format_version",
            "code/x.py",
            "data.pkl",
            "version",
        )
        found[f"{root}/{rng.choice(extra)}"] = rng.choice(
            (b"big", b"little", b"", b"3\n", b"\x80\x02}.")
        )


def _claim(case: Case) -> None:
    """Overwrite sizes, offsets or flags in an archive's directory, or in one member's own head."""
    data = bytearray(case.path.read_bytes())
    magic, fields = case.rng.choice(
        (
            (b"PK\x01\x02", ((20, 4), (24, 4), (42, 4), (10, 2), (8, 2), (28, 2), (38, 4))),
            (b"PK\x03\x04", ((18, 4), (22, 4), (26, 2), (28, 2), (8, 2), (6, 2))),
            (b"PK\x05\x06", ((8, 2), (10, 2), (12, 4), (16, 4), (20, 2))),
        )
    )
    places = [i for i in range(len(data)) if data[i] == 80 and data.startswith(magic, i)]
    for place in case.rng.sample(places, min(len(places), case.rng.choice((1, 1, 3)))):
        offset, size = case.rng.choice(fields)
        number = case.rng.choice((*NUMBERS, 1, 8, 12)) % 256**size
        data[place + offset : place + offset + size] = number.to_bytes(size, "little")
    case.path.write_bytes(data)


def _pickle(rng: Random, data: bytes) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = _change_pickle(rng, data)
    return data


def _change_pickle(rng: Random, data: bytes) -> bytes:
    spots = _spots(data)
    start, end, op, argument = rng.choice(spots)
    piece, kind = data[start:end], rng.randrange(7)
    if kind == 0:
        piece = b""
    elif kind == 1:
        piece += piece
    elif kind == 2:
        piece = bytes([rng.choice(_OPCODES)]) + piece[1:]
    elif kind == 3:
        piece = rng.choice(_GLOBALS) if op == "GLOBAL" else piece + rng.choice(_GLOBALS)
    elif kind == 4:
        call = rng.choice(_GLOBALS) + b"X\x04\x00\x00\x00true\x85R"
        piece = call + (b"0" if rng.random() < 0.5 else b"") + piece
    elif kind == 5:
        piece = b"]" * rng.choice((3, 2000)) + b"a" * rng.choice((2, 1999)) + b"0" + piece
    elif isinstance(argument, int) and not isinstance(argument, bool):
        piece = pickle.dumps(rng.choice(NUMBERS), 2)[2:-1]
    elif isinstance(argument, str):
        text = rng.choice((*NAMES, "FloatStorage", "cuda:0", "meta")).encode()
        piece = b"X" + len(text).to_bytes(4, "little") + text
    return data[:start] + piece + data[end:]


def _spots(data: bytes) -> list[tuple[int, int, str, Any]]:
    """Return where each opcode begins and ends, as far as the pickle can be followed."""
    found = []
    stream = io.BytesIO(data)
    try:
        for op, argument, start in pickletools.genops(stream):
            found.append((start or 0, stream.tell(), op.name, argument))
    except Exception:  # what was damaged before reads as anything
        pass
    return found or [(0, 1, "", None)]


def _content(rng: Random, depth: int) -> Any:
    kind = rng.randrange(9)
    if not depth or kind < 3:
        return _odd_tensor(rng)
    parts = [_content(rng, depth - 1) for _ in range(rng.choice((1, 2, 3)))]
    if kind == 3:
        return parts
    if kind == 4:
        return tuple(parts)
    if kind == 5:
        keys: list[Any] = [*NAMES, 1, None, (1, 2), 2.5]
        return {rng.choice(keys): part for part in parts}
    made: Any = {f"layer{i}.weight": part for i, part in enumerate(parts)}
    if kind == 6:
        made["self"] = made
    if kind == 7:
        for _ in range(rng.choice((5, 150))):
            made = {"a": made} if rng.random() < 0.5 else [made]
    return made


def _odd_tensor(rng: Random) -> Any:
    size = [rng.choice((0, 1, 2, 3)) for _ in range(rng.choice((0, 1, 2, 2, 4)))]
    made = torch.ones(size)
    kinds: tuple[Any, ...] = (
        lambda: made,
        lambda: made.t() if made.ndim == 2 else made,
        lambda: made.to_sparse(),
        lambda: made.to("meta"),
        lambda: made.to(torch.complex64),
        lambda: made.to(torch.float8_e5m2),
        lambda: torch.quantize_per_tensor(made, 0.1, 0, torch.qint8),
        lambda: torch.nn.Parameter(made),
        lambda: made.expand(5, *size),
        lambda: made.bfloat16().double(),
        lambda: made.bool(),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: made.to(torch.uint16),
        lambda: torch.tensor(float("nan")),
        lambda: rng.choice((None, 1, "text", b"bytes", {1}, 1j)),
        lambda: torch.ones(4, 4)[::2, 1:3],
        lambda: made.untyped_storage(),
        lambda: torch.Size(size),
        lambda: torch.ones(2, 2).to_sparse_csr(),
        lambda: made.conj(),
        lambda: made.requires_grad_(),
    )
    return rng.choice(kinds)()


CHECKPOINT: dict[str, Mutation] = {
    "members": members,
    "bomb": bomb,
    "pickle": pickled,
    "nested": nested,
}
EXPORTED: dict[str, Mutation] = {"members": members, "bomb": bomb, "told": told}
NPZ: dict[str, Mutation] = {"members": members, "bomb": bomb, "numpy header": numpy_header}
TORCHSCRIPT: dict[str, Mutation] = {"members": members, "bomb": bomb, "pickle": pickled}
