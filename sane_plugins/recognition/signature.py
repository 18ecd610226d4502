"""What an architecture is known by: the names of its tensors, and their shapes but for classes and channels.

A file is one of an architecture where all names are the same, and all lengths are, apart from those that
follow from the number of classes and of input channels: these must agree on both numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import nn

Shapes = Mapping[str, tuple[int, ...]]
Build = Callable[[int, int], nn.Module]
"""Builds a network for so many classes and input channels."""
_MANY = 1000  # channels: more than any length grows by with each class


@dataclass(frozen=True, order=True)
class Length:
    """A length that depends on the counts: `per_class` x classes + `per_channel` x channels + `fixed`.

    It is that of `axis` of the `tensor`-th tensor, by name.
    """

    tensor: int
    axis: int
    per_class: int
    per_channel: int
    fixed: int


@dataclass(frozen=True)
class Counts:
    """The numbers of classes and of input channels; None where the shapes do not depend on it."""

    classes: int | None = None
    channels: int | None = None


@dataclass(frozen=True)
class Signature:
    """Digests of an architecture's names and of its fixed lengths, and the lengths that depend on counts."""

    names: str
    shapes: str
    lengths: tuple[Length, ...] = ()

    @classmethod
    def of(cls, shapes: Shapes, lengths: Iterable[Length] = ()) -> Signature:
        """Return the signature of a network of these shapes, in which the given lengths depend on counts."""
        lengths = tuple(sorted(lengths))
        return cls(names_digest(shapes), _shapes_digest(shapes, lengths), lengths)

    def counts(self, shapes: Shapes) -> Counts | None:
        """Return the counts for which the architecture has these shapes, None where there are none."""
        if names_digest(shapes) != self.names or not self._have_axes(shapes):
            return None
        if _shapes_digest(shapes, self.lengths) != self.shapes:
            return None
        ordered = [shapes[key] for key in sorted(shapes)]
        found = [ordered[x.tensor][x.axis] for x in self.lengths]
        return _solve(self.lengths, found)

    def _have_axes(self, shapes: Shapes) -> bool:
        ordered = [shapes[key] for key in sorted(shapes)]
        return all(
            x.tensor < len(ordered) and x.axis < len(ordered[x.tensor]) for x in self.lengths
        )


def float_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a module's floating-point tensors: counters and tables of indices say nothing."""
    state = module.state_dict()
    return {
        key: tuple(value.shape)
        for key, value in state.items()
        if torch.is_tensor(value) and value.is_floating_point()
    }


def names_digest(names: Iterable[str]) -> str:
    """Return a digest of a set of names."""
    return _digest("\n".join(sorted(names)))


def fit_lengths(base: Shapes, more: Shapes, check: Shapes, counts: tuple[int, int]) -> list[Length]:
    """Return the lengths in which networks of several counts differ.

    `base` has the counts (classes, channels), `more` one class and `_MANY` channels more, and `check` two
    classes and one channel more. Raises `ValueError` where a length does not grow evenly.
    """
    if not base.keys() == more.keys() == check.keys():
        raise ValueError("its tensors depend on the counts")
    lengths = []
    for i, key in enumerate(sorted(base)):
        if not len(base[key]) == len(more[key]) == len(check[key]):
            raise ValueError(f"the axes of {key} depend on the counts")
        for axis, (one, other, third) in enumerate(
            zip(base[key], more[key], check[key], strict=True)
        ):
            per_channel, per_class = divmod(other - one, _MANY)
            if third - one != 2 * per_class + per_channel:
                raise ValueError(f"{key} does not grow evenly with the counts")
            if other != one:
                fixed = one - per_class * counts[0] - per_channel * counts[1]
                lengths.append(Length(i, axis, per_class, per_channel, fixed))
    return lengths


def _solve(lengths: Iterable[Length], found: Iterable[int]) -> Counts | None:
    """Return the counts that give the lengths found."""
    pairs = [*zip(lengths, found, strict=True)]
    classes = _common(
        _quotient(value - x.fixed, x.per_class) for x, value in pairs if not x.per_channel
    )
    channels = _common(
        _quotient(value - x.fixed, x.per_channel) for x, value in pairs if not x.per_class
    )
    fits = all(
        value == x.per_class * (classes or 0) + x.per_channel * (channels or 0) + x.fixed
        for x, value in pairs
    )
    return Counts(classes, channels) if fits and 0 not in (classes, channels) else None


def _quotient(total: int, part: int) -> int:
    """Return a count, 0 where it is none."""
    count, rest = divmod(total, part)
    return 0 if rest or count < 0 else count


def _common(counts: Iterable[int]) -> int | None:
    """Return the count that all name, None where there are none, 0 where they differ."""
    different = {*counts}
    if len(different) > 1:
        return 0
    return next(iter(different), None)


def _shapes_digest(shapes: Shapes, lengths: Iterable[Length]) -> str:
    free = {(x.tensor, x.axis) for x in lengths}
    rows = (
        ",".join("?" if (i, axis) in free else str(n) for axis, n in enumerate(shapes[key]))
        for i, key in enumerate(sorted(shapes))
    )
    return _digest("\n".join(rows))


def _digest(text: str) -> str:
    return sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
