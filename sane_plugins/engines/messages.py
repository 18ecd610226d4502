"""Messages between a run and its workers: pickles of known length over pipes."""

from __future__ import annotations

import pickle
from struct import Struct
from typing import Any, BinaryIO

_LENGTH = Struct("<Q")


def send(stream: BinaryIO, message: Any) -> None:
    """Write a message. Raises `OSError` where nobody reads."""
    data = message if isinstance(message, bytes) else pickle.dumps(message)
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def receive(stream: BinaryIO) -> bytes | None:
    """Read the pickle of a message; None where the writer has ended."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = stream.read(length)
    return data if len(data) == length else None
