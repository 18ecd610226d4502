"""A network's weights: ordered layers, their token layout, and tensors read on demand."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

import torch

from sane_plugins.errors import SourceError
from sane_plugins.weights.layers import MAX_AXES, Layer, Param, shape_text
from sane_plugins.weights.masks import (
    MASK_REASON,
    MAX_VALUE,
    count_unusable,
    is_mask,
    mask_candidates,
)
from sane_plugins.weights.token_layout import Slot, TokenLayout, find_slots


@dataclass(frozen=True, eq=False)
class StoredState:
    """A network as a file of it has it: tensors by the names of the source, ties between these.

    `main_names` has the names of tensors in use that are computed from stored ones: each with
    the stored one of its shape.
    """

    tensors: Mapping[str, torch.Tensor]
    ties: Mapping[str, str]
    main_names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class WeightGraph:
    """A network as ordered layers and a mapping from keys to tensors, which may be lazy.

    `tensors` holds every tensor of the source. Those that no layer owns are named in `untouched`
    with the reason, or in `ties` (alias -> the key that owns the shared tensor). `missed` counts the
    weights of those untouched tensors that may be some and still could not be read (a packed integer of
    eight 4-bit values is eight), and of other networks in the same file, by their names there. `converted`
    says for an owned tensor how its values differ from the stored ones (dequantised, pruning mask
    folded). `notes` says what a reader should know, such as a missing topology. `container` names
    the source format (`module`, `state_dict`, `safetensors`, `checkpoint`, `onnx`). `stored_form` makes
    the source's own tensors of a graph where some in use are computed from others (weight norm).
    `recognized` names the architectures that a file's names and shapes are those of.
    """

    source: str
    layers: tuple[Layer, ...]
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    untouched: Mapping[str, str] = field(default_factory=dict)
    ties: Mapping[str, str] = field(default_factory=dict)
    missed: Mapping[str, int] = field(default_factory=dict)
    converted: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    container: str = "state_dict"
    stored_form: Callable[[WeightGraph], StoredState] | None = field(default=None, repr=False)
    recognized: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for param in (param for layer in self.layers for param in layer.params):
            if len(param.shape) > MAX_AXES:
                raise SourceError(
                    f"{self.source}, '{param.key}'",
                    f"the tensor has {len(param.shape)} axes",
                    f"at most {MAX_AXES} are read",
                    "reshape it, and write it again",
                )
        if not any(prod(param.shape) for layer in self.layers for param in layer.params):
            raise SourceError(
                self.source,
                "no floating-point tensor was found",
                "a network needs at least one",
                "check that this is the file that holds the weights",
            )

    def __repr__(self) -> str:
        return (
            f"WeightGraph({self.source!r}, {self.container}, layers={len(self.layers)},"
            f" tensors={len(self.params)}, values={self.size:,})"
        )

    @cached_property
    def params(self) -> tuple[Param, ...]:
        """Return every owned tensor once, in network order (a tied tensor belongs to its first use)."""
        return tuple({p.key: p for layer in self.layers for p in layer.params}.values())

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """Return each matrix with its bias, and each lone vector, in network order."""
        return find_slots(self.layers)

    def token_layout(self, width: int) -> TokenLayout:
        """Return the layout of the slots in tokens of `width` values; cached per width."""
        if width not in self._token_layouts:
            self._token_layouts[width] = TokenLayout.of(self.slots, width)
        return self._token_layouts[width]

    @cached_property
    def _token_layouts(self) -> dict[int, TokenLayout]:
        return {}

    @property
    def has_topology(self) -> bool:
        """Return whether the layers name their inputs."""
        return any(layer.inputs for layer in self.layers)

    @cached_property
    def size(self) -> int:
        """Return the number of values in all owned tensors."""
        return sum(prod(p.shape) for p in self.params)

    @property
    def coverage(self) -> float:
        """Return the share of the source's parameters that was read."""
        return self.size / (self.size + sum(self.missed.values()))

    def items(self) -> Iterator[tuple[Param, torch.Tensor]]:
        """Yield each parameter with its tensor, reading one at a time."""
        for param in self.params:
            yield param, self.tensors[param.key]

    def replace(self, tensors: Mapping[str, torch.Tensor]) -> WeightGraph:
        """Return the same network with some tensors replaced; shapes must not change.

        Raises `SourceError` for a key that no layer owns and for a shape that differs.
        """
        shapes = {p.key: p.shape for p in self.params}
        for key, tensor in tensors.items():
            if key not in shapes:
                raise SourceError(
                    self.source,
                    f"a tensor was given for '{key}'",
                    "only tensors that a layer owns can be exchanged",
                    "check the name",
                )
            if tuple(tensor.shape) != shapes[key]:
                raise SourceError(
                    f"{self.source}, '{key}'",
                    f"a tensor of shape {shape_text(tensor.shape)} was given",
                    f"the network has {shape_text(shapes[key])}",
                    "check which network it is from",
                )
        copy = replace(self, tensors=ChainMap(dict(tensors), self.tensors))  # type: ignore[arg-type]
        # The layers are unchanged, so all that is derived from them can be reused.
        vars(copy).update(
            params=self.params,
            size=self.size,
            slots=self.slots,
            _token_layouts=self._token_layouts,
        )
        return copy

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Read every tensor in use, tied and untouched ones included."""
        keys = dict.fromkeys([*self.tensors, *self.ties])
        return {key: self.tensors[self.ties.get(key, key)] for key in keys}

    def stored_state(self) -> StoredState:
        """Return the tensors under the names of the source, as a file of it or `load_state_dict` has them.

        Raises `SourceError` where the source's form cannot hold a value that was exchanged.
        """
        if self.stored_form is not None:
            return self.stored_form(self)
        return StoredState(self.tensors, self.ties)

    @property
    def is_finite(self) -> bool:
        """Return whether every value of every weight is finite, and of a size to compute with."""
        return not any(count_unusable(tensor) for _, tensor in self.items())

    def require_finite(self) -> WeightGraph:
        """Return the graph to compute with: itself, or without masks, whose infinities are meant.

        Raises `SourceError` where another tensor holds NaN, infinity or huge values. Half of what float32
        holds is the limit, so that differences of weights are finite too.
        """
        masks = []
        candidates = frozenset(mask_candidates(self.layers))
        for param, tensor in self.items():
            if not (bad := count_unusable(tensor)):
                continue
            if param.key not in candidates or not is_mask(tensor):
                raise SourceError(
                    f"{self.source}, '{param.key}'",
                    f"{bad} of {param.size} values are not finite, or above {MAX_VALUE:.1g} in size",
                    "an embedding needs finite weights",
                    "check that training did not diverge",
                )
            masks.append(param.key)
        return self._without_masks(masks) if masks else self

    def without_masks(self, keys: Iterable[str]) -> WeightGraph:
        """Return the network without those of the tensors that are masks: they become untouched."""
        candidates = frozenset(mask_candidates(self.layers)) & frozenset(keys)
        masks = [key for key in candidates if is_mask(self.tensors[key])]
        return self._without_masks(masks) if masks else self

    def _without_masks(self, keys: Collection[str]) -> WeightGraph:
        """Return the network without some tensors, and without layers that had only these and none reads."""
        read = {name for layer in self.layers for name in layer.inputs}
        layers = []
        for layer in self.layers:
            params = tuple(param for param in layer.params if param.key not in keys)
            if params or not layer.params or layer.inputs or layer.name in read:
                layers.append(replace(layer, params=params))
        note = f"{len(keys)} constants with infinite values are left out, as masks"
        return replace(
            self,
            layers=tuple(layers),
            untouched={**self.untouched, **dict.fromkeys(sorted(keys), MASK_REASON)},
            converted={key: how for key, how in self.converted.items() if key not in keys},
            notes=(*self.notes, note),
        )
