"""All quantised weights of a model, and the integers that may be weights and are not read, counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from onnx import NodeProto

from sane_onnx.constants import Constant
from sane_onnx.operators.quantized_operators import true_count
from sane_onnx.quantization.combine_uses import combine_uses
from sane_onnx.quantization.constant_flow import ConstantFlow
from sane_onnx.quantization.quantized import QuantizedWeight
from sane_onnx.quantization.rounded import RoundedWeight, find_rounded
from sane_onnx.tensors import StoredTensor, type_name

_MAX_SIZES = 8  # longer lists are no sizes or axes of one tensor


@dataclass
class QuantizedWeights:
    """Quantised `weights` by key, and the constants that are their `settings`.

    `not_read` and `other_uses`: why numbers were not read, and how many weights, by key and by value.
    `dequantized` are values that arithmetic makes of quantised ones, with the value that they come from.
    """

    weights: dict[str, QuantizedWeight | RoundedWeight] = field(default_factory=dict)
    settings: set[str] = field(default_factory=set)
    not_read: dict[str, tuple[str, int]] = field(default_factory=dict)
    other_uses: dict[str, tuple[str, int]] = field(default_factory=dict)
    dequantized: Mapping[str, str] = field(default_factory=dict)


def find_quantized_weights(
    nodes: Sequence[NodeProto], constants: Mapping[str, Constant], index_ranks: Mapping[str, int]
) -> QuantizedWeights:
    """Find the quantised weights of a model, whose nodes are in topological order."""
    flow = ConstantFlow(nodes, constants, index_ranks)
    rounded = find_rounded(nodes, constants)
    found = QuantizedWeights(
        weights={**rounded}, dequantized={**flow.dequantized, **_passed(rounded)}
    )
    read = {name for node in nodes for name in node.input}
    for key, constant in constants.items():
        if not isinstance(constant, StoredTensor):
            continue
        if not constant.is_quantized_type:
            if key in read and _may_hold_weights(constant):
                kind = type_name(constant.tensor)
                found.not_read[key] = (f"{kind} values cannot be read", prod(constant.shape))
            continue
        _add(found, key, constant, flow)
    found.settings = {name for weight in found.weights.values() for name in weight.settings}
    for name in found.settings:
        found.not_read.pop(name, None)
        found.weights.pop(name, None)
    return found


def _add(found: QuantizedWeights, key: str, stored: StoredTensor, flow: ConstantFlow) -> None:
    uses, lost = flow.uses.get(key, []), flow.lost.get(key, [])
    is_plain = all(use.scale is None and use.zero is None for _, use in uses)
    if _are_positions(stored) or (is_plain and _are_no_weights(stored, bool(uses))):
        return
    if uses:
        stored.require()
        weight, others = combine_uses(stored, uses)
        for value, count in others.items():
            reason = f"'{key}' dequantised with other scales than those it was read with"
            found.other_uses[value] = (reason, count)
        if weight is not None:
            found.weights[key] = weight
            for node in lost:
                reason = f"computed from '{key}' in another way than dequantising it"
                value = next(filter(None, node.output), "")
                found.other_uses.setdefault(value, (reason, weight_count(node, stored, flow)))
            return
    if lost or uses:
        counts = [weight_count(node, stored, flow) for node in lost] or [stored.size]
        kind = type_name(stored.tensor)
        found.not_read[key] = (f"{kind} values whose scales are not known constants", max(counts))


def _passed(rounded: Mapping[str, RoundedWeight]) -> dict[str, str]:
    """Return the integers that weights are rounded to on the way."""
    return {weight.node.output[0]: key for key, weight in rounded.items()}


def weight_count(node: NodeProto, stored: StoredTensor, flow: ConstantFlow) -> int:
    """Return how many weights a tensor holds of which a node reads several from each number."""
    if node.op_type == "BitwiseAnd" and not node.domain:
        masks = [flow.constant(name) for name in node.input]
        ones = [
            int(x.reshape(-1)[0]).bit_count() for x in masks if x is not None and x.numel() == 1
        ]
        return stored.size * stored.bits // ones[0] if ones and ones[0] else stored.size
    return true_count(node, stored.size, stored.bits)


def _are_no_weights(stored: StoredTensor, is_cast: bool) -> bool:
    """Return whether integers say nothing of the network: a number, sizes, zeros and ones."""
    is_integer = stored.dtype is not None and not stored.dtype.is_floating_point
    if stored.size == 1:
        return True
    if not is_integer or not (stored.is_wide or is_cast):
        return False
    if stored.is_wide and len(stored.shape) < 2 and stored.size <= _MAX_SIZES:
        return True
    stored.require()
    numbers = stored.read()
    return bool(((numbers == 0) | (numbers == 1)).all())


def _are_positions(stored: StoredTensor) -> bool:
    """Return whether integers count from 0 on."""
    if not stored.is_wide or stored.size <= _MAX_SIZES:
        return False
    stored.require()
    numbers = stored.read().reshape(-1).to(torch.int64)
    return torch.equal(numbers, torch.arange(len(numbers)))


def _may_hold_weights(stored: StoredTensor) -> bool:
    """Return whether a tensor holds complex numbers, or numbers of a type that torch lacks."""
    is_number = stored.dtype is None and type_name(stored.tensor) not in ("STRING", "UNDEFINED")
    return stored.dtype in (torch.complex64, torch.complex128) or is_number
