"""Where branches of a network are added up, and the values that flow there in a forward pass.

Calls of operators are counted in the order of the forward pass, which is the same each time for images of one
size in one mode. So what a trace of two images says of a call holds for the passes that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sane_plugins.grafting.connections import Activation

_LAYOUTS = frozenset(
    [
        *("permute", "transpose", "view", "unsqueeze", "squeeze", "_unsafe_view"),
        *("clone", "contiguous", "alias", "detach", "_to_copy"),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ResidualSum:
    """A sum of branches: the number of its call, and the numbers of those that computed its two sides.

    `layer` is the convolution or linear layer that is last to act before the sum, with norms, scales and
    dropout alone between; `rest` is the other side, which is computed before it, and `rest_layer` the layer
    that it comes from in the same way; None for an identity. `is_channels_last`: the layer's channels are the
    last axis of the sum, whatever they are of its own output. `scale` is the learnt vector that the layer's
    side is multiplied by, if any. `activation` is what bends the sum before anything else reads it.
    """

    call: int
    rest: int
    layer: str
    rest_layer: str | None
    is_channels_last: bool
    scale: nn.Parameter | None
    activation: Activation | None


class CallWatch(TorchDispatchMode):
    """Hands on what the calls of given numbers return, as soon as they have; nothing is kept."""

    def __init__(self, receive: Mapping[int, Callable[[torch.Tensor], None]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._receive, self._count, self._is_paused = receive, 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self._is_paused:
            number, self._count = self._count, self._count + 1
            if number in self._receive:
                with self.paused():
                    self._receive[number](_first(output))
        return output

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count no calls within the block."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before


@dataclass(frozen=True)
class _TracedCall:
    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: tuple[int, ...]

    @property
    def name(self) -> str:
        """Return the operator's name, without overload and without the underscore of in-place forms."""
        return str(self.function.overloadpacket.__name__).rstrip("_")


class _CallTrace(TorchDispatchMode):
    """Records of each call its operator, the calls that computed its inputs, and its output."""

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_TracedCall] = []
        self.outputs: list[Any] = [images]  # kept alive, so that no identity is given twice
        self._numbers = {id(images): -1}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        inputs = tuple(self._numbers.get(id(x), -2) for x in args)
        self._numbers[id(_first(output))] = len(self.calls)
        self.calls.append(_TracedCall(func, args, kwargs or {}, inputs))
        self.outputs.append(output)
        return output

    def number(self, tensor: torch.Tensor) -> int:
        """Return the number of the call that computed a tensor last."""
        return self._numbers.get(id(tensor), -2)


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple | list) and output else output


@torch.no_grad()
def residual_sums(module: nn.Module, images: torch.Tensor) -> tuple[ResidualSum, ...]:
    """Return the sums of a network's branches in a forward pass of images (2, C, H, W), in order.

    Its modes stay as they are: trace it in those of the passes to come.
    """
    layers: dict[int, str] = {}
    trace = _CallTrace(images)

    def note(name: str) -> Callable[..., None]:
        return lambda _m, _i, output: layers.__setitem__(trace.number(output), name)

    hooks = [
        layer.register_forward_hook(note(name))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    try:
        with trace:
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
    parameters = {id(p): p for p in module.parameters()}
    found = (
        _residual_sum(number, trace, layers, module, parameters)
        for number, call in enumerate(trace.calls)
        if call.name == "add" and _adds_maps(call.args)
    )
    return tuple(x for x in found if x is not None)


def _adds_maps(args: tuple[Any, ...]) -> bool:
    one, other = args[:2]
    return isinstance(other, torch.Tensor) and one.ndim > 1 and one.shape == other.shape


def _residual_sum(
    number: int,
    trace: _CallTrace,
    layers: Mapping[int, str],
    module: nn.Module,
    parameters: Mapping[int, nn.Parameter],
) -> ResidualSum | None:
    sides = trace.calls[number].inputs[:2]
    branches = [_branch(side, trace, layers, parameters) for side in sides]
    own = max((0, 1), key=lambda i: branches[i].start if branches[i].start in layers else -3)
    branch, rest = branches[own], sides[1 - own]
    if branch.start not in layers or not 0 <= rest < branch.start:
        return None
    layer = layers[branch.start]
    axis = _channel_axis(branch, module.get_submodule(layer), trace)
    if axis is None:
        return None
    return ResidualSum(
        call=number,
        rest=rest,
        layer=layer,
        # What the other branch reads as well is an identity, whatever computed it.
        rest_layer=layers.get(branches[1 - own].start) if len(_readers(rest, trace)) == 1 else None,
        is_channels_last=axis == trace.outputs[number + 1].ndim - 1,
        scale=branch.scale,
        activation=_activation(number, trace),
    )


def _channel_axis(branch: _SummedBranch, layer: nn.Module, trace: _CallTrace) -> int | None:
    """Return which axis has the channels of a layer at the end of its branch.

    Their numbers are led through the branch's changes of layout; None where these share an axis out.
    """
    output = trace.outputs[branch.start + 1]
    marked = torch.empty_like(output, dtype=torch.long)
    axis = 1 if isinstance(layer, nn.Conv2d) else output.ndim - 1
    numbers = torch.arange(output.shape[axis], device=output.device)
    marked.movedim(axis, -1).copy_(numbers)
    for call in branch.layouts:
        marked = call.function(marked, *call.args[1:], **call.kwargs)
    axes = [axis for axis, size in enumerate(marked.shape) if size == len(numbers)]
    return next((i for i in axes if bool((marked.movedim(i, -1) == numbers).all())), None)


def _activation(number: int, trace: _CallTrace) -> Activation | None:
    """Return the function of one tensor that alone reads a call's value, entry by entry."""
    readers = _readers(number, trace)
    if len(readers) != 1 or sum(isinstance(x, torch.Tensor) for x in readers[0].args) != 1:
        return None
    call = readers[0]
    if call.name in _LAYOUTS or torch.Tag.pointwise not in call.function.tags:
        return None
    return lambda x: call.function(x.clone(), *call.args[1:], **call.kwargs)


@dataclass(frozen=True)
class _SummedBranch:
    """The calls from a layer's, or another that is no norm, scale or change of layout, to a side of a sum."""

    start: int
    scale: nn.Parameter | None = None
    layouts: Sequence[_TracedCall] = ()


def _branch(
    call: int, trace: _CallTrace, layers: Mapping[int, str], parameters: Mapping[int, nn.Parameter]
) -> _SummedBranch:
    """Walk back from a side of a sum over norms, learnt scales and changes of layout to a layer's call."""
    scale: nn.Parameter | None = None
    layouts: list[_TracedCall] = []
    while call >= 0 and call not in layers:
        made = trace.calls[call]
        if made.name == "mul":
            learnt = [_parameter(made, i, trace, parameters) for i in (0, 1)]
            own = [i for i in (0, 1) if learnt[i] is not None]
            if len(own) != 1:
                return _SummedBranch(-2)
            scale = learnt[own[0]]
            call = made.inputs[1 - own[0]]
        elif "batch_norm" in made.name or made.name in _LAYOUTS:
            layouts += [made] if made.name in _LAYOUTS else []
            call = made.inputs[0]
        else:
            return _SummedBranch(call)
    return _SummedBranch(call, scale, layouts[::-1])


def _parameter(
    call: _TracedCall, argument: int, trace: _CallTrace, parameters: Mapping[int, nn.Parameter]
) -> nn.Parameter | None:
    """Return the parameter that an argument of a call is, or is another view of."""
    value, number = call.args[argument], call.inputs[argument]
    while id(value) not in parameters and number >= 0 and trace.calls[number].name in _LAYOUTS:
        value, number = trace.calls[number].args[0], trace.calls[number].inputs[0]
    return parameters.get(id(value))


def _readers(number: int, trace: _CallTrace) -> list[_TracedCall]:
    return [call for call in trace.calls if number in call.inputs]
