"""The natural order of names: layer 10 after layer 2, and a recurrent layer's tensors as torch lists them."""

from __future__ import annotations

import re

_MAX_NUMBERS = 32  # of a name, when names are sorted
# What torch calls the tensors of recurrent layers: of the input, of the state, of the projection.
_RECURRENT = re.compile(r"(?:weight|bias)_(ih|hh|hr)(?:_l(\d{1,9}))?(_reverse)?")
_SOURCES = ("ih", "hh", "hr")


def natural_key(key: str) -> list[tuple[int, str]]:
    """Return a sort key that puts layer 10 after layer 2; of many numbers, the first are compared so."""
    parts = re.split(r"(\d{1,18})", key, maxsplit=_MAX_NUMBERS)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def recurrent_place(key: str) -> tuple[int, bool, bool, int] | None:
    """Return the place of a recurrent layer's tensor: layer, direction, matrices first, source."""
    found = _RECURRENT.fullmatch(key.rpartition(".")[2])
    if found is None:
        return None
    source, layer, backwards = found.groups()
    is_bias = found[0].startswith("bias")
    return int(layer or 0), bool(backwards), is_bias, _SOURCES.index(source)
