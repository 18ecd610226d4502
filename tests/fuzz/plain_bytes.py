"""Damage that knows nothing of the form: flipped bits, pieces moved, files cut short."""

from __future__ import annotations

from random import Random

from fuzz.case import NUMBERS, Case, Mutation


def _place(rng: Random, size: int) -> int:
    """Return a place in a file: mostly near its ends, where its structure is told."""
    near = min(size, rng.choice((64, 512, 4096)))
    kind = rng.random()
    if kind < 0.4:
        return rng.randrange(max(near, 1))
    return size - 1 - rng.randrange(near) if near and kind < 0.7 else rng.randrange(max(size, 1))


def _edited(case: Case) -> bytearray:
    return bytearray(case.path.read_bytes())


def flip(case: Case) -> None:
    """Flip a few bits."""
    data = _edited(case)
    for _ in range(case.rng.choice((1, 1, 2, 4, 16))):
        data[_place(case.rng, len(data))] ^= 1 << case.rng.randrange(8)
    case.path.write_bytes(data)


def splice(case: Case) -> None:
    """Put a piece of another file in, or over what is there."""
    data, piece = _edited(case), case.any_bytes()
    start = _place(case.rng, len(data))
    data[start : start + case.rng.choice((0, len(piece)))] = piece
    case.path.write_bytes(data)


def cut(case: Case) -> None:
    """Drop the end, the beginning or a piece."""
    data, place = _edited(case), _place(case.rng, case.path.stat().st_size)
    kind = case.rng.randrange(3)
    gone = slice(place, None) if kind == 0 else slice(0, place)
    data[gone if kind < 2 else slice(place, place + case.rng.randrange(1, 65))] = b""
    case.path.write_bytes(data)


def lengths(case: Case) -> None:
    """Write telling numbers as varints and as fixed integers of either order."""
    data = _edited(case)
    for _ in range(case.rng.choice((1, 1, 3))):
        number, start = case.rng.choice(NUMBERS), _place(case.rng, len(data))
        size = case.rng.choice((1, 2, 4, 8))
        order = case.rng.choice(("little", "big"))
        fixed = (number % 2 ** (8 * size)).to_bytes(size, "little" if order == "little" else "big")
        piece = case.rng.choice((fixed, _varint(number % 2**64)))
        data[start : start + len(piece)] = piece
    case.path.write_bytes(data)


def repeat(case: Case) -> None:
    """Repeat a piece, or all of it."""
    data, start = _edited(case), _place(case.rng, case.path.stat().st_size)
    piece = data[start : start + case.rng.choice((1, 8, 64, 512, len(data)))]
    data[start:start] = bytes(piece) * min(
        case.rng.choice((1, 2, 50)), 1 + 10**6 // max(len(piece), 1)
    )
    case.path.write_bytes(data)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


MUTATIONS: dict[str, Mutation] = {
    "flip": flip,
    "splice": splice,
    "cut": cut,
    "lengths": lengths,
    "repeat": repeat,
}
