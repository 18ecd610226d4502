"""Limits of what is read of an ONNX file; the table is in docs/reference/files.md.

All are checked before anything is built of what they limit. Files of real networks are far from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

from sane_plugins.errors import SourceError
from sane_plugins.weights import MAX_AXES

FILE_BYTES = 2**31 - 1  # protobuf's own limit
PARTS = 1_000_000  # messages and texts; parsed, one of two bytes takes two hundred
NODES = 30_000  # in the file
INLINED_NODES = 10_000  # with constants, that functions and subgraphs stand for
WEIGHTS = 3_000  # as many as of other forms
BYTES_PER_PART = 1024  # of the file: for each so many there may be one part, node or weight more
DEPTH = 60  # of functions and subgraphs in each other
INLINED_BYTES = 64 * 2**20  # of nodes and names that functions and subgraphs stand for
NAME = 1_000  # characters
REPEATED_BYTES = 2**30  # that ConstantOfShape repeats one value to
MAX_EXPANSION = 100  # sparse tensors made dense may take as many times the file's size,
ROOM = 16 * 2**20  # and so many bytes in any case
INFERRED_SIZES = (
    2_000_000  # axes of all values, and sizes in all lists, that shape inference works out
)

_MAX_VALUES = 2**63 - 1  # torch counts in 64 bits, of an empty tensor too


def allowance(free: int, nbytes: int) -> int:
    """Return how many parts, nodes or weights a file of `nbytes` may have, of which `free` need no bytes."""
    return free + nbytes // BYTES_PER_PART


def expanded_bytes(nbytes: int) -> int:
    """Return how many bytes the dense forms of a file's sparse tensors may take."""
    return MAX_EXPANSION * nbytes + ROOM


def shape_problem(shape: Sequence[int]) -> str:
    """Return why there can be no tensor of this shape, however its values are stored; empty if there can."""
    if len(shape) > MAX_AXES:
        return f"it has {len(shape)} axes, more than {MAX_AXES}"
    if min(shape, default=0) < 0 or prod(size for size in shape if size) > _MAX_VALUES:
        return f"its shape is {tuple(shape)}"
    return ""


def too_many(path: Path | str, found: str, needed: str = "at most so many are read") -> SourceError:
    """Return the error for a model that exceeds a limit."""
    return SourceError(path, found, needed, "export the network in a smaller form")
