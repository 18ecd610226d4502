"""Run a network on the meta device, where tensors have shapes and no values, and count what it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from sane_plugins.cost.input_shapes import shapes_to_try
from sane_plugins.cost.live_tensors import LiveTensors
from sane_plugins.cost.network_cost import CostOptions, NetworkCost
from sane_plugins.errors import SourceError, first_line
from sane_plugins.runtime import drawing_from, without_warnings
from sane_plugins.weights import evaluation_copy

_ATEN = torch.ops.aten
_MOST_ALIKE = 3  # runs at several sizes that fail in one and the same way
_MAX_NAMED = 5  # kinds of operations in a note


def cost_of(module: nn.Module, options: CostOptions, place: str = "the network") -> NetworkCost:
    """Count what a pass of inference takes. The module may have values, or be on the meta device.

    Raises `SourceError`, about `place`, where its forward takes no input that is known here, or asks for
    values. The method: docs/explanation/sane.md, section 17.1.
    """
    module = evaluation_copy(module)
    problem: Exception | None = None
    told: Counter[str] = Counter()
    for shape in shapes_to_try(module, options):
        try:
            cost = _count(module, shape.of_batch(options.batch))
        except Exception as error:  # any code runs in a forward
            problem = problem or error
            told[first_line(error)] += 1
            if max(told.values()) == _MOST_ALIKE:  # it has nothing to do with the size
                break
            continue
        return replace(cost, notes=(*shape.notes, *cost.notes))
    if problem is None:
        raise SourceError(
            place,
            "what it takes as input does not follow from its layers",
            "a shape is needed",
            "name it with --shape, such as --shape 3,224,224",
        )
    raise SourceError(
        place,
        f"it cannot be run on shapes alone ({type(problem).__name__}: {first_line(problem)})",
        "its operations must follow from the shape of its input",
        "check --size or --shape; what a network does with values cannot be counted",
    ) from problem


def _count(module: nn.Module, inputs: Sequence[torch.Tensor]) -> NetworkCost:
    state = {
        key: torch.empty_like(tensor, device="meta")
        for key, tensor in [*module.named_parameters(), *module.named_buffers()]
    }
    live = LiveTensors(state.values())
    counter = FlopCounterMode(display=False, custom_mapping=_ALSO_COUNTED)
    with (
        without_warnings(),
        drawing_from(torch.Generator()),
        _plain_tensors_on_meta(module),
        torch.no_grad(),
        live,
        counter,
    ):
        live.hold(inputs)
        functional_call(module, state, tuple(inputs))
    parameters = dict(module.named_parameters())
    return NetworkCost(
        inputs=tuple(tuple(x.shape) for x in inputs),
        parameters=sum(x.numel() for x in parameters.values()),
        macs=counter.get_total_flops() // 2,
        activations=live.activations,
        layers=sum(any(True for _ in m.parameters(recurse=False)) for m in module.modules()),
        weight_bytes=live.weight_bytes,
        peak_bytes=live.weight_bytes + live.peak_bytes,
        grouped_macs=live.grouped_macs,
        operations=live.operations,
        moved_bytes=live.moved_bytes,
        notes=tuple(_notes(live)),
    )


def _notes(live: LiveTensors) -> Iterator[str]:
    if live.uncounted:
        names = ", ".join(sorted(live.uncounted)[:_MAX_NAMED])
        yield f"MACs of {names} are not counted"


@contextmanager
def _plain_tensors_on_meta(module: nn.Module) -> Iterator[None]:
    """Replace tensors that a copy holds beside its parameters and buffers, within the block."""
    found = [
        (part, name, value)
        for part in module.modules()
        for name, value in vars(part).items()
        if isinstance(value, torch.Tensor) and value.device.type != "meta"
    ]
    for part, name, value in found:
        vars(part)[name] = torch.empty_like(value, device="meta")
    try:
        yield
    finally:
        for part, name, value in found:
            vars(part)[name] = value


def _product(*axes: int) -> Callable[..., int]:
    """Return the FLOPs of a product: its MACs are the first operand's size times lengths of the second's."""

    def flops(first: torch.Size, second: torch.Size, *_: Any, **__: Any) -> int:
        count = first.numel()
        for axis in axes:
            count *= second[axis]
        return 2 * count

    return flops


# Products that torch's counter passes over.
_ALSO_COUNTED = {
    _ATEN.mv: _product(),
    _ATEN.dot: _product(),
    _ATEN.vdot: _product(),
    _ATEN.addmv: lambda _, matrix, vector, **__: _product()(matrix, vector),
    _ATEN.addbmm: lambda _, first, second, **__: _product(-1)(first, second),
}
