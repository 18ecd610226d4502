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

from sane_onnx import limits

_VARINT, _EIGHT_BYTES, _BYTES, _GROUPS, _FOUR_BYTES = 0, 1, 2, (3, 4), 5
_VALUES = {_VARINT: rb"[\x80-\xff]*[\x00-\x7f]", _EIGHT_BYTES: rb".{8}", _FOUR_BYTES: rb".{4}"}
_READ_VARINT = re.compile(rb"[\x80-\xff]{0,9}[\x00-\x7f]")


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
            raise limits.too_many(path, f"it has more than {most_parts} parts", "so many are read")
        tag = _READ_VARINT.match(data, position)
        if tag is None:
            return
        position, number = tag.end(), _integer(tag.group())
        wire_type = number & 7
        if wire_type == _BYTES:
            length = _READ_VARINT.match(data, position)
            if length is None:
                return
            position = length.end()
            kind = _messages(kinds[-1]).get(number >> 3)
            if kind is None:
                position += _integer(length.group())
                continue
            ends.append(position + _integer(length.group()))
            kinds.append(kind)
            nodes += kind is NodeProto.DESCRIPTOR
            if nodes > most_nodes:
                raise limits.too_many(
                    path, f"it has more than {most_nodes} nodes", "so many are read"
                )
        elif wire_type in _VALUES:
            values = _run(tag.group(), wire_type).match(data, tag.start(), ends[-1])
            if values is None:
                return
            position = values.end()
        elif wire_type not in _GROUPS:  # the fields of a group are counted as the message's own
            return


@cache
def _messages(descriptor: Any) -> Mapping[int, Any]:
    """Return the message types of a message's fields by their numbers."""
    return {f.number: f.message_type for f in descriptor.fields if f.message_type is not None}


@cache
def _run(tag: bytes, wire_type: int) -> re.Pattern[bytes]:
    """Return the pattern of a field's values one after the other, as a list is stored."""
    return re.compile(b"(?:" + re.escape(tag) + _VALUES[wire_type] + b")+", re.DOTALL)


def _integer(varint: bytes) -> int:
    if len(varint) == 1:
        return varint[0]
    return sum((byte & 127) << 7 * i for i, byte in enumerate(varint))
