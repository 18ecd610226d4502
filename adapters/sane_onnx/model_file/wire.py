"""Count a serialized model's parts before it is parsed: two bytes of a file may take hundreds of memory.

A message is a run of fields: a tag (number and wire type), then a value or a length and as many bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from onnx import ModelProto, NodeProto

from sane_onnx.model_file import limits

_VARINT, _EIGHT_BYTES, _BYTES, _GROUPS, _FOUR_BYTES = 0, 1, 2, (3, 4), 5
_VALUES = {
    _VARINT: re.compile(rb"[\x80-\xff]{0,9}[\x00-\x7f]"),
    _EIGHT_BYTES: re.compile(rb".{8}", re.DOTALL),
    _FOUR_BYTES: re.compile(rb".{4}", re.DOTALL),
}


def require_few_parts(path: Path, data: bytes) -> None:
    """Raise `SourceError` where a model has more parts, or nodes, than a network of its size.

    What follows damage is not counted: the parser, which comes next, stops there.
    """
    most_parts = limits.allowance(limits.PARTS, len(data))
    most_nodes = limits.allowance(limits.NODES, len(data))
    parts = nodes = position = 0
    ends, kinds = [len(data)], [ModelProto.DESCRIPTOR]
    while ends:
        if position >= ends[-1]:
            ends.pop()
            kinds.pop()
            continue
        parts += 1
        if parts > most_parts:
            raise limits.too_many(path, f"it has more than {most_parts} parts")
        start = position
        number, position = _varint(data, position)
        wire_type = number & 7
        if wire_type == _BYTES:
            length, position = _varint(data, position)
            kind = _messages(kinds[-1]).get(number >> 3)
            if kind is None:
                position += length
                continue
            ends.append(min(position + length, ends[-1]))
            kinds.append(kind)
            nodes += kind is NodeProto.DESCRIPTOR
            if nodes > most_nodes:
                raise limits.too_many(path, f"it has more than {most_nodes} nodes")
        elif wire_type in _VALUES:
            # A list repeats its tag, which is one byte in all lists that ONNX knows.
            pattern = _run(data[start]) if data[start] < 128 else _VALUES[wire_type]
            values = pattern.match(data, start if data[start] < 128 else position)
            if values is None:
                return
            position = values.end()
        elif wire_type not in _GROUPS:  # the fields of a group are counted as the message's own
            return


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the integer at a position, 7 bits a byte, and the position after it, or 0 and the end."""
    if position < len(data) and data[position] < 128:
        return data[position], position + 1
    match = _VALUES[_VARINT].match(data, position)
    if match is None:
        return 0, len(data)
    return sum((byte & 127) << 7 * i for i, byte in enumerate(match.group())), match.end()


@cache
def _messages(descriptor: Any) -> Mapping[int, Any]:
    """Return the message types of a message's fields by their numbers."""
    return {f.number: f.message_type for f in descriptor.fields if f.message_type is not None}


@cache
def _run(tag: int) -> re.Pattern[bytes]:
    """Return the pattern of values of one field after each other, each behind its tag of one byte."""
    value = _VALUES[tag & 7].pattern
    return re.compile(b"(?:" + re.escape(bytes([tag])) + value + b")+", re.DOTALL)
