"""Run a network once on images and record what each weight multiplies, by torch's own operators.

Nothing is known of modules, names or libraries: values are followed through the operators that any module
comes down to. Functions that only move entries are run a second time on the entries' channels.
The method: docs/explanation/sane.md, section 11.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sane_plugins.grafting.transformers.tracing.attention_rules import fused_attention, mix
from sane_plugins.grafting.transformers.tracing.channel_nodes import ChannelNodes
from sane_plugins.grafting.transformers.tracing.entry_rules import (
    move,
    pointwise,
    reduced,
    weights_only,
)
from sane_plugins.grafting.transformers.tracing.layer_rules import convolution, linear, norm
from sane_plugins.grafting.transformers.tracing.run_record import (
    FUSED_ATTENTION,
    SOFTMAX,
    RunRecord,
)
from sane_plugins.grafting.transformers.tracing.steps import Step
from sane_plugins.grafting.transformers.tracing.traced_values import (
    Activation,
    Known,
    WeightView,
    tensors_in,
)
from sane_plugins.weights import evaluation_copy

_MOVES = frozenset(
    [
        *("view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"),
        *("permute", "transpose", "t", "expand", "repeat", "flip", "roll", "unfold"),
        *("slice", "select", "narrow", "split", "split_with_sizes", "chunk", "unbind"),
        *("cat", "stack", "index", "index_select", "constant_pad_nd"),
        *("clone", "contiguous", "alias", "detach", "_to_copy", "lift_fresh", "positive"),
    ]
)
_NORMS = frozenset(
    [
        *("native_layer_norm", "native_group_norm", "_fused_rms_norm"),
        *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
        *("cudnn_batch_norm", "miopen_batch_norm"),
    ]
)


@dataclass(frozen=True, kw_only=True, eq=False)
class TracedRun:
    """What a run recorded: its steps in order, and which channels are one."""

    steps: tuple[Step, ...]
    nodes: ChannelNodes
    shapes: Mapping[str, tuple[int, ...]]


def execute(module: nn.Module, images: torch.Tensor) -> TracedRun:
    """Run a copy of a module in evaluation mode on two of the images (N, C, H, W), and record its steps."""
    copied = evaluation_copy(module)
    batch = images[:2].detach().clone()
    record = RunRecord(copied, batch)
    with plain_operators(), _Recorder(record):
        copied(batch)
    return TracedRun(steps=tuple(record.steps), nodes=record.nodes, shapes=record.shapes)


def has_attention(module: nn.Module, images: torch.Tensor) -> bool:
    """Return whether a module computes a softmax inside, by a run on two of the images (N, C, H, W)."""
    finder = _SoftmaxFinder()
    with plain_operators(), finder:
        evaluation_copy(module)(images[:2])
    return finder.found


class _SoftmaxFinder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.found |= name in SOFTMAX or name.startswith(FUSED_ATTENTION)
        return func(*args, **(kwargs or {}))


@contextmanager
def plain_operators() -> Iterator[None]:
    """Compute without gradients and step by step within the block: the same operators in each run."""
    with torch.no_grad(), _NoFastPaths():
        yield


class _NoFastPaths(TorchFunctionMode):
    """Changes nothing; where a mode is on, torch's transformer layers compute step by step."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    """Records the steps of a run."""

    def __init__(self, record: RunRecord) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._record = record

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._record.call += 1
        result = func(*args, **kwargs)
        tensors, find = tensors_in(result), self._record.find
        if tensors and any(find(t) is not None for t in tensors_in((args, kwargs))):
            try:
                known = _apply(self._record, func, args, kwargs, tensors)
            except (RuntimeError, IndexError, ValueError, TypeError):
                known = []  # an operator in a way that no rule foresees: its result is unknown
            for tensor, each in zip(tensors, known, strict=False):
                if each is not None:
                    self._record.set(tensor, each)
        return result


def _apply(
    run: RunRecord, func: Any, args: Any, kwargs: Any, results: list[torch.Tensor]
) -> list[Known | None]:
    """Return what is known of an operator's results."""
    name = func.overloadpacket.__name__
    if name in _MOVES:
        return move(run, func, args, kwargs)
    if name.startswith(FUSED_ATTENTION):
        return [fused_attention(run, name, args, kwargs, results[0])]
    if name in _NORMS:
        return [norm(run, name, args)]
    if name == "convolution":
        return [convolution(run, args, results[0])]
    if name in ("addmm", "baddbmm"):
        return [_product(run, name, args[1:3], results[0], args[0])]
    if name in ("mm", "bmm"):
        return [_product(run, name, args[:2], results[0], None)]
    known = [run.find(t) for t in tensors_in((args, kwargs))]
    activations = [k for k in known if isinstance(k, Activation)]
    if not activations:
        return [weights_only(name, known, results[0])]
    if len(activations) == 1 and results[0].shape != activations[0].channels.shape:
        return [reduced(run, name, args, kwargs, activations[0], results[0])]
    return [pointwise(run, name, args, known, results[0])]


def _product(
    run: RunRecord, name: str, factors: Any, result: torch.Tensor, bias: Any
) -> Known | None:
    one, other = (run.find(factor) for factor in factors)
    if isinstance(one, Activation) and isinstance(other, WeightView):
        return linear(run, one, other, result, bias)
    if isinstance(one, Activation) and isinstance(other, Activation):
        return mix(run, name, one, other, result)
    return None
