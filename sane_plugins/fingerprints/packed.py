"""Fingerprints of networks of one form, as rows of a few arrays: how an index stores and compares them.

Legend: N networks of one form, T its tensors, L numbers of its matrices' channels and sketches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from sane_plugins.display import ShortRepr
from sane_plugins.fingerprints.channel_descriptors import descriptor_length
from sane_plugins.fingerprints.likeness import LENGTH, embedding
from sane_plugins.fingerprints.network_fingerprint import (
    MAX_CHANNELS,
    MOMENTS,
    QUANTILES,
    NetworkFingerprint,
    TensorFingerprint,
)
from sane_plugins.fingerprints.projection import SIDE

SKETCH = SIDE * SIDE


@dataclass(frozen=True)
class TensorForm:
    """Name, layer, role and shape of a tensor."""

    key: str
    layer: str
    role: str
    shape: tuple[int, ...]

    @property
    def parts(self) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of what is kept: descriptors of outputs and of inputs, and the sketch."""
        if len(self.shape) < 2:
            return ()
        width = descriptor_length(self.shape[2:])
        return *((min(n, MAX_CHANNELS), width) for n in self.shape[:2]), (SKETCH,)


@dataclass(frozen=True)
class NetworkForm:
    """The tensors of networks of one architecture, whose fingerprints have one length."""

    tensors: tuple[TensorForm, ...]

    @classmethod
    def of(cls, network: NetworkFingerprint) -> NetworkForm:
        """Return the form of a fingerprint."""
        return cls(tuple(TensorForm(x.key, x.layer, x.role, x.shape) for x in network.tensors))

    @cached_property
    def spans(self) -> tuple[tuple[slice, ...], ...]:
        """Return where the parts of each tensor lie in a row of L numbers."""
        sizes = [[prod(part) for part in tensor.parts] for tensor in self.tensors]
        ends = iter(accumulate(size for own in sizes for size in own))
        return tuple(
            tuple(slice(end - size, end) for size in own for end in [next(ends)]) for own in sizes
        )

    @property
    def length(self) -> int:
        """Return the numbers of a row."""
        return max((part.stop for own in self.spans for part in own), default=0)

    @property
    def channels(self) -> int:
        """Return the number of channels that are kept of all matrices."""
        return sum(part[0] for tensor in self.tensors for part in tensor.parts[:2])


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PackedFingerprints(ShortRepr):
    """Fingerprints of N networks of one form.

    `names` and `sources` of the networks, `numbers` (N, L) float16 of their matrices, `channels` (N, C) int32
    with the channels that are kept, `quantiles` (N, T, 33), `moments` (N, T, 3) and `embeddings` (N, F), all
    three float32.
    """

    form: NetworkForm
    names: tuple[str, ...]
    sources: tuple[str, ...]
    numbers: npt.NDArray[np.float16]
    channels: npt.NDArray[np.int32]
    quantiles: npt.NDArray[np.float32]
    moments: npt.NDArray[np.float32]
    embeddings: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def pack(cls, named: Sequence[tuple[str, NetworkFingerprint]]) -> PackedFingerprints:
        """Pack the fingerprints of networks of one form, each with a name."""
        networks = [network for _, network in named]
        return cls(
            form=NetworkForm.of(networks[0]),
            names=tuple(name for name, _ in named),
            sources=tuple(network.source for network in networks),
            numbers=np.stack([_row(x, _numbers, np.float16) for x in networks]),
            channels=np.stack([_row(x, _channels, np.int32) for x in networks]),
            quantiles=np.stack([np.stack([x.quantiles for x in n.tensors]) for n in networks]),
            moments=np.stack([np.stack([x.moments for x in n.tensors]) for n in networks]),
            embeddings=np.stack([embedding(x) for x in networks]).astype(np.float32),
        )

    def unpack(self, row: int) -> NetworkFingerprint:
        """Return one of the fingerprints."""
        tensors = []
        end = 0
        for i, (tensor, spans) in enumerate(zip(self.form.tensors, self.form.spans, strict=True)):
            parts = [
                self.numbers[row, span].astype(np.float32).reshape(shape)
                for span, shape in zip(spans, tensor.parts, strict=True)
            ]
            none = np.zeros((0, 0), np.float32)
            outputs, inputs, sketch = parts or (none, none, none.ravel())
            ends = [end, end + len(outputs), end + len(outputs) + len(inputs)]
            tensors.append(
                TensorFingerprint(
                    key=tensor.key,
                    layer=tensor.layer,
                    role=tensor.role,
                    shape=tensor.shape,
                    quantiles=self.quantiles[row, i],
                    moments=self.moments[row, i],
                    outputs=outputs,
                    output_channels=self.channels[row, ends[0] : ends[1]],
                    inputs=inputs,
                    input_channels=self.channels[row, ends[1] : ends[2]],
                    sketch=sketch,
                )
            )
            end = ends[2]
        return NetworkFingerprint(source=self.sources[row], tensors=tuple(tensors))

    def part(self, tensor: int, part: int, most: int | None = None) -> npt.NDArray[np.float32]:
        """Return a part of a tensor for all networks, (N, ...); of channels, the `most` least alike."""
        span, shape = self.form.spans[tensor][part], self.form.tensors[tensor].parts[part]
        if most is not None and most < shape[0]:
            shape = (most, *shape[1:])
            span = slice(span.start, span.start + prod(shape))
        return self.numbers[:, span].astype(np.float32).reshape(len(self), *shape)

    def named(self, names: Sequence[str]) -> PackedFingerprints:
        """Return the same networks under other names."""
        return replace(self, names=tuple(names))

    def take(self, rows: Sequence[int]) -> PackedFingerprints:
        """Return some of the networks."""
        return PackedFingerprints(
            form=self.form,
            names=tuple(self.names[i] for i in rows),
            sources=tuple(self.sources[i] for i in rows),
            **{name: getattr(self, name)[[*rows]] for name in ARRAYS},
        )

    def joined(self, other: PackedFingerprints) -> PackedFingerprints:
        """Return these and others of the same form."""
        return PackedFingerprints(
            form=self.form,
            names=self.names + other.names,
            sources=self.sources + other.sources,
            **{
                name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in ARRAYS
            },
        )


ARRAYS = ("numbers", "channels", "quantiles", "moments", "embeddings")


def pack_all(named: Iterable[tuple[str, NetworkFingerprint]]) -> list[PackedFingerprints]:
    """Pack fingerprints by their form."""
    by_form: dict[NetworkForm, list[tuple[str, NetworkFingerprint]]] = {}
    for name, network in named:
        by_form.setdefault(NetworkForm.of(network), []).append((name, network))
    return [PackedFingerprints.pack(own) for own in by_form.values()]


def to_arrays(packed: Sequence[PackedFingerprints]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what describes fingerprints, as plain data, and their arrays by name."""
    description = [
        {
            "tensors": [[x.key, x.layer, x.role, list(x.shape)] for x in one.form.tensors],
            "names": list(one.names),
            "sources": list(one.sources),
        }
        for one in packed
    ]
    arrays = {f"{i}.{name}": getattr(one, name) for i, one in enumerate(packed) for name in ARRAYS}
    return {"forms": description}, arrays


def from_arrays(
    description: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
) -> list[PackedFingerprints]:
    """Return fingerprints from `to_arrays`. Raises `ValueError` where sizes do not agree."""
    found = []
    for i, record in enumerate(description["forms"]):
        tensors = (
            TensorForm(str(k), str(layer), str(role), tuple(map(int, shape)))
            for k, layer, role, shape in record["tensors"]
        )
        form, names = NetworkForm(tuple(tensors)), tuple(map(str, record["names"]))
        own = {name: arrays[f"{i}.{name}"] for name in ARRAYS}
        n, t = len(names), len(form.tensors)
        shapes = {
            "numbers": (n, form.length),
            "channels": (n, form.channels),
            "quantiles": (n, t, QUANTILES),
            "moments": (n, t, MOMENTS),
            "embeddings": (n, LENGTH),
        }
        for name, shape in shapes.items():
            if own[name].shape != shape or not np.isfinite(own[name]).all():
                raise ValueError(f"the {name} of form {i} do not fit its networks")
        sources = tuple(map(str, record["sources"]))
        if len(sources) != n:
            raise ValueError(f"form {i} has {n} names and {len(sources)} sources")
        found.append(PackedFingerprints(form=form, names=names, sources=sources, **own))
    return found


def _row(network: NetworkFingerprint, parts: Any, dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate(
        [np.zeros(0, dtype), *(x for t in network.tensors for x in parts(t))]
    ).astype(dtype)


def _numbers(tensor: TensorFingerprint) -> Iterator[npt.NDArray[Any]]:
    if tensor.is_matrix:
        yield from (tensor.outputs.ravel(), tensor.inputs.ravel(), tensor.sketch)


def _channels(tensor: TensorFingerprint) -> Iterator[npt.NDArray[Any]]:
    if tensor.is_matrix:
        yield from (tensor.output_channels, tensor.input_channels)
