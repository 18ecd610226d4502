"""Damage to what JSON tells: the header of a safetensors file, the index of a sharded one."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from fuzz.case import NAMES, NUMBERS, Case, Mutation

_TYPES = (
    "F32",
    "F64",
    "F16",
    "BF16",
    "I8",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F4",
    "I64",
    "U16",
    "C64",
    "X",
)


def header(case: Case) -> None:
    """Change types, shapes, offsets and names in a safetensors header, its length kept right or not."""
    data = case.path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    told = json.loads(data[8 : 8 + size])
    for _ in range(case.rng.choice((1, 1, 2, 5))):
        _change_entry(case.rng, told)
    text = json.dumps(told).encode()
    claimed = len(text) if case.rng.random() < 0.9 else case.rng.choice(NUMBERS) % 2**64
    case.path.write_bytes(claimed.to_bytes(8, "little") + text + data[8 + size :])


def metadata(case: Case) -> None:
    """Keep the tensors, and tell nonsense about their order, ties and axes."""
    data = case.path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    told = json.loads(data[8 : 8 + size])
    told["__metadata__"] = {"sane": json.dumps(_ours(case.rng, [k for k in told if k[0] != "_"]))}
    text = json.dumps(told).encode()
    case.path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def index(case: Case) -> None:
    """Change an index: names that lead out, to nothing, to the wrong file; other kinds of values."""
    told = json.loads(case.path.read_text())
    where = told["weight_map"]
    for _ in range(case.rng.choice((1, 1, 3))):
        _change_index(case, told, where)
    case.path.write_text(json.dumps(told))


def shard(case: Case) -> None:
    """Damage one of the files that an index names."""
    index_path = case.path
    case.path = case.rng.choice(sorted(index_path.parent.glob("*.safetensors")))
    if case.rng.random() < 0.2:
        case.path.unlink()
    else:
        case.rng.choice((header, metadata))(case)
    case.path = index_path


def any_json(rng: Random, depth: int = 3) -> Any:
    """Return some JSON value, sometimes a very deep one."""
    kind = rng.randrange(8)
    if kind == 0 and depth == 3:
        deep: Any = 0
        for _ in range(rng.choice((20, 900))):
            deep = [deep] if rng.random() < 0.5 else {"a": deep}
        return deep
    if kind < 3 and depth:
        return [any_json(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind < 5 and depth:
        return {rng.choice(NAMES): any_json(rng, depth - 1) for _ in range(rng.randrange(4))}
    return rng.choice((None, True, 1.5, float("nan"), *NUMBERS, *NAMES))


def _change_entry(rng: Random, told: dict[str, Any]) -> None:
    key = rng.choice(list(told))
    entry, kind = told[key], rng.randrange(9)
    if kind == 0:
        told[rng.choice((*NAMES, "__metadata__", "\ud800"))] = told.pop(key)
    elif kind == 1:
        told[key] = any_json(rng)
    elif kind == 2:
        told["__metadata__"] = any_json(rng)
    elif kind == 3:
        # JSON that is longer than what it tells.
        told.update({f"{key}.{i}": entry for i in range(rng.choice((1, 300)))})
    elif isinstance(entry, dict) and "shape" in entry and isinstance(entry["shape"], list):
        _change_tensor(rng, entry)


def _change_tensor(rng: Random, entry: dict[str, Any]) -> None:
    kind = rng.randrange(4)
    if kind == 0:
        entry["dtype"] = rng.choice(_TYPES)
    elif kind == 1:
        shape = entry["shape"]
        shape.insert(rng.randrange(len(shape) + 1), rng.choice((1, 0, *NUMBERS)))
    elif kind == 2 and entry["shape"]:
        entry["shape"][rng.randrange(len(entry["shape"]))] = rng.choice(NUMBERS)
    else:
        entry["data_offsets"] = [
            rng.choice((*NUMBERS, 4, 16)) for _ in range(rng.choice((2, 2, 3)))
        ]


def _ours(rng: Random, keys: list[str]) -> Any:
    told: dict[str, Any] = {"keys": keys, "ties": {}, "axes": {}}
    for _ in range(rng.choice((1, 2, 4))):
        kind = rng.randrange(7)
        key, other = rng.choice(keys), rng.choice((*keys, *NAMES))
        if kind == 0:
            told["keys"] = rng.sample(keys, len(keys))
        elif kind == 1:
            told["ties"] = {key: other, other: key}
        elif kind == 2:
            told["axes"] = {k: rng.choice((*NUMBERS, 1.5, "1", None)) for k in keys}
        elif kind == 3:
            told[rng.choice(list(told))] = any_json(rng)
        elif kind == 4:
            told.pop(rng.choice(list(told)))
        elif kind == 5:
            return any_json(rng)
        else:
            told["keys"] = [*keys, key]
        told = {"keys": keys, "ties": {}, "axes": {}, **told} if rng.random() < 0.7 else told
        if not told:
            return told
    return told


def _change_index(case: Case, told: dict[str, Any], where: dict[str, Any]) -> None:
    rng, kind = case.rng, case.rng.randrange(8)
    if kind < 3 and where:
        where[rng.choice(list(where))] = case.outside()
    elif kind == 3 and where:
        where.update(dict.fromkeys(where, case.outside()))
    elif kind == 4 and where:
        where[rng.choice((*NAMES, "new"))] = where[rng.choice(list(where))]
    elif kind == 5 and where:
        where.pop(rng.choice(list(where)))
    elif kind == 6:
        told[rng.choice(("metadata", "weight_map", "x"))] = any_json(rng)
    else:
        told["metadata"] = {"sane": json.dumps(_ours(rng, list(where) or ["a"]))}


SAFETENSORS: dict[str, Mutation] = {"header": header, "metadata": metadata}
SHARDED: dict[str, Mutation] = {"index": index, "shard": shard}
