"""Find the quantised weights of a source, by the names, shapes and types of the tensors that make them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from sane_plugins.quantization.bitmask import find_bitmask
from sane_plugins.quantization.bitsandbytes import find_four_bit
from sane_plugins.quantization.four_bit_floats import find_float4, find_float4_blocks
from sane_plugins.quantization.half_quadratic import find_half_quadratic
from sane_plugins.quantization.packed_integers import (
    find_packed_layer,
    find_packed_rows,
    find_packed_weight,
)
from sane_plugins.quantization.packed_params import find_packed_params
from sane_plugins.quantization.scaled_weights import find_scaled, find_vectorwise
from sane_plugins.quantization.stored import (
    Described,
    QuantizedTensor,
    Stored,
    Tensors,
    UnreadTensor,
    split_key,
)

_Find = Callable[[str, Stored], QuantizedTensor | UnreadTensor | None]
_OF_FLOATS: tuple[_Find, ...] = (find_four_bit, find_bitmask, find_packed_params)
_OF_ANY: tuple[_Find, ...] = (
    find_four_bit,
    find_packed_layer,
    find_packed_weight,
    find_half_quadratic,
    find_bitmask,
    find_float4_blocks,
    find_float4,
    find_packed_rows,
    find_vectorwise,
    find_scaled,
    find_packed_params,
)
# What quantised layers keep of their activations, by the names of the formats.
_ACTIVATIONS = (
    "input_scale",
    "output_scale",
    "scale_input",
    "input_zero_point",
    "input_global_scale",
    "input_scale_ub",
    "k_scale",
    "v_scale",
    "q_scale",
    "prob_scale",
)
_ACTIVATION = "a scale of activations, no weight"


@dataclass(frozen=True)
class Quantized:
    """What of a source's tensors is quantised weights.

    `read` maps the first of a weight's parts to the weight, `unread` the stored values to what is known;
    `parts` maps other parts to a reason, `settings` what belongs to no weight.
    """

    read: Mapping[str, QuantizedTensor] = field(default_factory=dict)
    unread: Mapping[str, UnreadTensor] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)


def find_quantized(
    described: Described, tensors: Tensors, quantized: Iterable[str] = ()
) -> Quantized:
    """Find quantised weights; of the values only small ones that describe others are read.

    `quantized` names tensors that are known to have been, and are plain by now.
    """
    stored = Stored(described, tensors)
    read: dict[str, QuantizedTensor] = {}
    unread: dict[str, UnreadTensor] = {}
    parts: dict[str, str] = {}
    targets: set[str] = set()
    for key in described:
        if key in parts:
            continue
        formats = _OF_FLOATS if stored.is_real(key) else _OF_ANY  # most tensors are plain floats
        found = next((x for each in formats if (x := each(key, stored))), None)
        if isinstance(found, QuantizedTensor) and found.key not in targets:
            read[key] = found
            targets.add(found.key)
            parts |= {
                part: f"part of the quantised '{found.key}', folded into it"
                for part in found.parts
                if part not in (key, found.key)
            }
        elif isinstance(found, UnreadTensor):
            unread[key] = found
            parts |= dict.fromkeys(found.parts, f"part of the quantised '{key}', which is not read")
    known = {*quantized, *(x.key or x.stored for x in unread.values())}
    for key, weight in read.items():
        activations = stored.present(*_activations(weight.key))
        read[key] = replace(weight, parts=(*weight.parts, *activations))
        parts |= dict.fromkeys(activations, _ACTIVATION)
    settings = dict.fromkeys(
        stored.present(*(x for key in known for x in _activations(key))), _ACTIVATION
    )
    settings |= dict.fromkeys(_affine_activations(stored), _ACTIVATION)
    # A part may come before the tensor that it belongs to.
    read = {key: x for key, x in read.items() if key not in parts}
    return Quantized(read, unread, parts, {k: v for k, v in settings.items() if k not in parts})


def _activations(weight: str) -> list[str]:
    """Return the names that formats give to scales of the activations beside a quantised weight."""
    layer, _ = split_key(weight)
    return [f"{layer}{name}" for name in _ACTIVATIONS]


def _affine_activations(stored: Stored) -> Iterator[str]:
    """Yield scales that lie beside their zero point, as torch.ao keeps those of a layer's output."""
    for key in stored.described:
        layer, attribute = split_key(key) if key.endswith("scale") else ("", "")
        zero = f"{layer}zero_point"
        if attribute == "scale" and zero in stored.described and stored.is_real(key):
            is_pair = stored.shape(zero) == stored.shape(key)
            if is_pair and not stored.dtype(zero).is_floating_point:
                yield key
