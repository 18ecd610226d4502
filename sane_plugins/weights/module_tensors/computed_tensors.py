"""Tensors that torch computes from others on each forward pass: pruned, weight-normed, spectrally normed.

The rules are the same in a module, where the sources are attributes, and in a file, where they are keys.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

# What a power iteration that has not converged may leave: a larger spectral norm is another matrix's.
_MOST_SPECTRAL_NORM = 1.1


@dataclass(frozen=True)
class ComputedTensor(ABC):
    """A tensor by name, and the names of the tensors that it is computed from, its `sources`.

    The values are those of evaluation mode. `adjective` and `rule` say in words how it is computed.
    """

    name: str
    sources: tuple[str, ...]
    adjective: ClassVar[str]
    rule: ClassVar[str]

    @property
    @abstractmethod
    def main_source(self) -> str:
        """Return the source that has the tensor's own shape."""

    @abstractmethod
    def value(self, *sources: torch.Tensor) -> torch.Tensor:
        """Return the tensor that these sources give."""

    @abstractmethod
    def invert(self, value: torch.Tensor, *sources: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return sources that give this value, or what comes nearest; `sources` are the present ones."""


@dataclass(frozen=True)
class Pruned(ComputedTensor):
    """`torch.nn.utils.prune`: an original, and a mask of its shape."""

    adjective: ClassVar[str] = "pruned"
    rule: ClassVar[str] = "pruning mask"

    @property
    def main_source(self) -> str:
        """Return the original's name."""
        return self.sources[0]

    def value(self, *sources: torch.Tensor) -> torch.Tensor:
        """Return the product of original and mask."""
        original, mask = sources
        return original * mask

    def invert(self, value: torch.Tensor, *sources: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the original and the same mask; entries that it hides keep their original."""
        original, mask = sources
        return torch.where(mask != 0, value / mask, original).to(original.dtype), mask


@dataclass(frozen=True)
class WeightNormed(ComputedTensor):
    """Weight norm: lengths g, and directions v of the tensor's shape; -1 is one length for all."""

    axis: int
    adjective: ClassVar[str] = "weight-normed"
    rule: ClassVar[str] = "weight norm"

    @property
    def main_source(self) -> str:
        """Return the name of the directions."""
        return self.sources[1]

    def value(self, *sources: torch.Tensor) -> torch.Tensor:
        """Return g v / |v|."""
        lengths, directions = sources
        return torch._weight_norm(directions, lengths, self.axis)

    def invert(self, value: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the lengths and directions of a value."""
        lengths = torch.norm_except_dim(value, 2, self.axis)
        # 0 / 0 is no direction.
        return lengths, torch.where(lengths == 0, torch.ones_like(value), value)


@dataclass(frozen=True)
class SpectrallyNormed(ComputedTensor):
    """Spectral norm: an original W, divided by u' W v. Rows are along the axis that gives the largest."""

    axes: tuple[int, ...]
    adjective: ClassVar[str] = "spectrally normed"
    rule: ClassVar[str] = "spectral norm"

    @property
    def main_source(self) -> str:
        """Return the original's name."""
        return self.sources[0]

    def value(self, *sources: torch.Tensor) -> torch.Tensor:
        """Return W / (u' W v)."""
        return sources[0] / max(self._norms(*sources))

    def invert(self, value: torch.Tensor, *sources: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the value itself with vectors u and v that leave it as it is, if its spectral norm is 1."""
        _, left, right = sources
        norms = self._norms(*sources)
        axis = self.axes[norms.index(max(norms))]
        u, v = unit_vectors(as_matrix(value, axis))
        return value, u.to(left), v.to(right)

    def _norms(self, *sources: torch.Tensor) -> list[torch.Tensor]:
        original, left, right = sources
        return [torch.dot(left, torch.mv(as_matrix(original, x), right)) for x in self.axes]


def as_matrix(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Return a matrix whose rows are along an axis, as torch's spectral norm has it."""
    return tensor.movedim(axis, 0).flatten(1)


def unit_vectors(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit vectors u, v in float64 with u' M v = 1, if the spectral norm is 1 or a little above.

    Spectral norms are above 1 where torch's power iteration did not converge. Else the vectors are those
    of the largest singular value.
    """
    matrix = matrix.detach().double()
    is_wide = matrix.shape[0] <= matrix.shape[1]
    gram = matrix @ matrix.T if is_wide else matrix.T @ matrix
    top = torch.linalg.eigh(gram.nan_to_num(0.0, 0.0, 0.0)).eigenvectors[:, -1]
    v = _normalized(matrix.T @ top) if is_wide else top
    u = _normalized(matrix @ v)
    norm = float(u @ matrix @ v)
    if 1 < norm <= _MOST_SPECTRAL_NORM:
        if len(u) > 1:
            u = _turned(u, 1 / norm)
        elif len(v) > 1:
            v = _turned(v, 1 / norm)
    return u, v


def _normalized(vector: torch.Tensor) -> torch.Tensor:
    unit: torch.Tensor = vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny)
    return unit


def _turned(vector: torch.Tensor, cosine: float) -> torch.Tensor:
    """Return a unit vector at an angle of this cosine."""
    other = torch.zeros_like(vector)
    other[vector.abs().argmin()] = 1
    sine: float = (1 - cosine**2) ** 0.5
    return cosine * vector + sine * _normalized(other - (other @ vector) * vector)


class ComputedTensors:
    """The computed tensors of a module or a file; a source may be computed itself.

    A tensor may be computed from what is stored under its own name.
    """

    def __init__(
        self, computed: Iterable[ComputedTensor], stored: Callable[[str], torch.Tensor]
    ) -> None:
        self.by_name = {part.name: part for part in computed}
        self._stored = stored
        self._users = {source: part for part in self.by_name.values() for source in part.sources}

    def value(self, name: str) -> torch.Tensor:
        """Return a tensor's value, computed or stored."""
        part = self.by_name.get(name)
        return self._stored(name) if part is None else part.value(*self._sources(part))

    def stored_values(self, name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the stored tensors that give a value, or what comes nearest; as they are if they give it."""
        part = self.by_name.get(name)
        if part is None:
            return {name: value}
        sources = self._sources(part)
        if not torch.equal(part.value(*sources), value):
            sources = part.invert(value, *sources)
        pairs = zip(part.sources, sources, strict=True)
        return {
            k: x
            for source, y in pairs
            for k, x in ({source: y} if source == name else self.stored_values(source, y)).items()
        }

    def result(self, name: str) -> str:
        """Return the name of the tensor that is computed from this one; the same where none is."""
        user = self._users.get(name)
        return name if user is None or user.name == name else self.result(user.name)

    def stored_names(self, name: str) -> list[str]:
        """Return the names of what a tensor is computed from at last; its own where it is stored."""
        part = self.by_name.get(name)
        if part is None:
            return [name]
        return [
            x
            for source in part.sources
            for x in ([source] if source == name else self.stored_names(source))
        ]

    def main_source(self, name: str) -> str:
        """Return the name of the stored tensor that has a tensor's shape."""
        part = self.by_name.get(name)
        if part is None or part.main_source == name:
            return name
        return self.main_source(part.main_source)

    def _sources(self, part: ComputedTensor) -> tuple[torch.Tensor, ...]:
        return tuple(self._stored(x) if x == part.name else self.value(x) for x in part.sources)


def stored_ties(computed: ComputedTensors, ties: Mapping[str, str]) -> dict[str, str]:
    """Return the ties between stored tensors, given those between the tensors in use."""
    pairs = (
        pair
        for alias, owner in ties.items()
        for pair in zip(computed.stored_names(alias), computed.stored_names(owner), strict=False)
    )
    return {alias: owner for alias, owner in pairs if alias != owner}
