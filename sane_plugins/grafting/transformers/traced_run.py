"""Run a network once on images and record what each weight multiplies, by torch's own operators.

Nothing is known of modules, names or libraries: values are followed through the operators that any module
comes down to. Functions that only move entries are run a second time on the entries' channels.
The method: docs/explanation/sane.md, section 11.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sane_plugins.grafting.transformers.channel_nodes import UNKNOWN, ChannelNodes
from sane_plugins.grafting.transformers.steps import (
    AttentionStep,
    ContractionStep,
    ImageStep,
    NormStep,
    Step,
    SumStep,
    TableStep,
    TokenStep,
    VectorStep,
)
from sane_plugins.grafting.transformers.traced_values import (
    Activation,
    Known,
    WeightView,
    moved,
    tensors_in,
    varies,
    whole_parameter,
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
_SOFTMAX = ("_softmax", "_safe_softmax")
_FUSED = "_scaled_dot_product"
_SPATIAL = ("pool", "upsample")


@dataclass(frozen=True, kw_only=True, eq=False)
class TracedRun:
    """What a run recorded: its steps in order, and which channels are one."""

    steps: tuple[Step, ...]
    nodes: ChannelNodes
    shapes: Mapping[str, tuple[int, ...]]


def execute(module: nn.Module, images: torch.Tensor) -> TracedRun:
    """Run a copy of a module in evaluation mode on two of the images (N, C, H, W), and record its steps."""
    copied = evaluation_copy(module)
    recorder = _Recorder(copied)
    with (
        torch.enable_grad(),
        _NoFastPaths(),
    ):  # fused operators of torch show nothing of their parts
        for parameter in copied.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        batch = images[:2].detach().clone()
        recorder.read_images(batch)
        with recorder:
            copied(batch)
    return TracedRun(steps=tuple(recorder.steps), nodes=recorder.nodes, shapes=recorder.shapes)


def attends(module: nn.Module, images: torch.Tensor) -> bool:
    """Return whether a module computes a softmax inside, by a run on two of the images (N, C, H, W)."""
    finder = _SoftmaxFinder()
    with torch.no_grad(), finder, _NoFastPaths():
        evaluation_copy(module)(images[:2])
    return finder.found


class _SoftmaxFinder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.found |= name in _SOFTMAX or name.startswith(_FUSED)
        return func(*args, **(kwargs or {}))


class _NoFastPaths(TorchFunctionMode):
    """Changes nothing; where a mode is on, torch's transformer layers compute step by step."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    """Records the steps of a run."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        parameters = dict(module.named_parameters())
        self.shapes = {key: tuple(p.shape) for key, p in parameters.items()}
        self.nodes = ChannelNodes(self.shapes)
        self.steps: list[Step] = []
        # Tensors are held, so that no later one gets the id of a freed one.
        self._held: list[torch.Tensor] = list(parameters.values())
        self._known: dict[int, Known] = {
            id(p): whole_parameter(key, p.shape) for key, p in parameters.items()
        }
        self._scores: dict[int, tuple[torch.Tensor, torch.Tensor, float]] = {}
        self._grid: tuple[int, int] | None = None

    def read_images(self, images: torch.Tensor) -> None:
        """Name the channels and pixels of the images (N, C, H, W)."""
        _, channels, height, width = images.shape
        names = self.nodes.new(channels)
        pixels = torch.arange(height * width).view(height, width)
        self._grid = (height, width)
        step = self._add(ImageStep(name="images", sources=(), inputs=names))
        self._set(
            images,
            Activation(
                channels=names.view(1, -1, 1, 1).expand(images.shape),
                cells=pixels.expand(images.shape),
                step=step,
                reads_image=True,
            ),
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = tensors_in(result)
        if tensors and any(self._find(t) is not None for t in tensors_in((args, kwargs))):
            for tensor, known in zip(
                tensors, self._apply(func, args, kwargs, tensors), strict=False
            ):
                if known is not None:
                    self._set(tensor, known)
        return result

    def _apply(
        self, func: Any, args: Any, kwargs: Any, results: list[torch.Tensor]
    ) -> list[Known | None]:
        name = func.overloadpacket.__name__
        if name in _MOVES:
            return self._move(func, args, kwargs)
        known = [self._find(t) for t in tensors_in((args, kwargs))]
        if name.startswith(_FUSED):
            return [self._attention(name, args, kwargs, results[0])]
        if name in _NORMS:
            return [self._norm(name, args)]
        if name == "convolution":
            return [self._convolution(args, results[0])]
        if name in ("addmm", "baddbmm"):
            return [self._product(name, args[1], args[2], results[0], args[0])]
        if name in ("mm", "bmm"):
            return [self._product(name, args[0], args[1], results[0], None)]
        activations = [k for k in known if isinstance(k, Activation)]
        if not activations:
            return [self._weights_only(name, known, results[0])]
        if len(activations) == 1 and results[0].shape != activations[0].channels.shape:
            return [self._reduced(name, args, kwargs, activations[0], results[0])]
        return [self._pointwise(name, args, known, results[0])]

    # entries that move

    def _move(self, func: Any, args: Any, kwargs: Any) -> list[Known | None]:
        parts = [(t, self._find(t)) for t in tensors_in((args, kwargs))]
        if any(isinstance(k, Activation) for _, k in parts):
            for tensor, known in parts:
                if isinstance(known, WeightView):
                    self._set(tensor, self._as_token(known))
            activations = [k for t, _ in parts if isinstance(k := self._find(t), Activation)]
            found = moved(func, args, kwargs, self._find)
            sources = {a.step: None for a in activations}
            if len(sources) > 1:
                self._unite_parts(func, args, activations)
                step = self._add(Step(name="join", sources=tuple(sources)))
                return [replace(k, step=step) if isinstance(k, Activation) else k for k in found]
            return found
        return moved(func, args, kwargs, self._find)

    def _unite_parts(self, func: Any, args: Any, activations: list[Activation]) -> None:
        """Unite the channels of concatenated tokens: those of parts joined along another axis."""
        if func.overloadpacket.__name__ != "cat":
            return
        dim = args[1] if len(args) > 1 else 0
        firsts = [a.channels.select(dim, 0) for a in activations if a.channels.numel()]
        is_other_axis = all(not varies(self.nodes.roots(a.channels), dim) for a in activations)
        if is_other_axis and all(len(torch.unique(first)) > 1 for first in firsts):
            for first in firsts[1:]:
                self.nodes.unite(firsts[0], first)

    def _as_token(self, view: WeightView) -> Activation:
        """Return a parameter as a value: its longest axis holds the channels, or its last."""
        shape = self.shapes[view.key]
        axis = max(range(len(shape)), key=lambda a: (shape[a], a))
        if sum(size > 1 for size in shape) > 1:
            axis = len(shape) - 1
        channels = self.nodes.of(view.key, axis, view.entries[axis])
        step = self._add(TokenStep(name="token", sources=(), key=view.key, axis=axis))
        return Activation(channels=channels, cells=torch.full_like(channels, UNKNOWN), step=step)

    def _weights_only(
        self, name: str, known: list[Known | None], result: torch.Tensor
    ) -> Known | None:
        """Return a sum of parameters; other functions of them are not understood."""
        views = [k for k in known if isinstance(k, WeightView)]
        shapes = {view.entries[0].shape for view in views}
        if name in ("add", "add_") and len(views) == 2 and shapes == {result.shape}:
            return replace(views[0], added=(*views[0].added, views[1], *views[1].added))
        return None

    # values that are computed entry by entry

    def _pointwise(
        self, name: str, args: Any, known: list[Known | None], result: torch.Tensor
    ) -> Known:
        activations = [k for k in known if isinstance(k, Activation)]
        views = [k for k in known if isinstance(k, WeightView)]
        first = activations[0]
        made = self._spread(first, result.shape)
        if len(activations) == 2:
            other = self._spread(activations[1], result.shape)
            self.nodes.unite(made.channels, other.channels)
            channels = torch.where(made.channels < 0, other.channels, made.channels)
            cells = torch.where(made.cells < 0, other.cells, made.cells)
            sources = (first.step, other.step)
            step = Step(name=name, sources=sources)
            if name in ("add", "add_"):
                step = SumStep(name=name, sources=sources, channels=_line(channels))
            number = self._add(step)
            self._inherit_scores(first.step, number)
            return Activation(channels=channels, cells=cells, step=number)
        for view in views:
            for part in (view, *view.added):
                made = self._with_parameter(name, made, part)
        if views:
            return made
        factor = _factor(name, args)
        if factor is not None:
            return replace(made, factor=made.factor * factor)
        if name in ("add", "add_", "sub", "masked_fill", "where"):  # of a mask or a constant
            return made
        number = self._add(Step(name=name, sources=(made.step,)))
        if name in _SOFTMAX:
            self._inherit_scores(made.step, number, made.factor)
        return replace(made, step=number, factor=1.0)

    def _with_parameter(self, name: str, value: Activation, view: WeightView) -> Activation:
        shape = value.channels.shape
        entries = [entry.expand(shape) for entry in view.entries]
        axis = self._channel_axis(value, entries)
        sources = (value.step,)
        if axis is None or name not in ("add", "add_", "mul", "mul_", "sub", "div"):
            number = self._add(Step(name=name, sources=sources))
            if name in ("add", "add_"):  # a bias of the scores, by relative position
                self._inherit_scores(value.step, number)
            return replace(value, step=number)
        nodes = self.nodes.of(view.key, axis, entries[axis])
        self.nodes.unite(value.channels, nodes)
        channels = torch.where(value.channels < 0, nodes, value.channels)
        value = replace(value, channels=channels)
        if sum(size > 1 for size in self.shapes[view.key]) == 1:
            is_factor = name.startswith(("mul", "div"))
            step: Step = VectorStep(name=name, sources=sources, key=view.key, is_factor=is_factor)
        else:
            cells = self._cells_of(view.key, axis, entries, value.cells)
            step = TableStep(
                name=name, sources=sources, key=view.key, axis=axis, cells=cells, grid=self._grid
            )
        return replace(value, step=self._add(step))

    def _channel_axis(self, value: Activation, entries: list[torch.Tensor]) -> int | None:
        """Return the parameter's axis along which its numbers belong to the value's channels."""
        candidates = [a for a, entry in enumerate(entries) if int(entry.max()) > 0]
        if len(candidates) == 1:
            return candidates[0]
        roots = self.nodes.roots(value.channels)
        for axis in candidates:
            pairs = torch.stack((roots, entries[axis]), -1).flatten(0, -2)
            pairs = torch.unique(pairs[(pairs >= 0).all(-1)], dim=0)
            ones, others = (len(torch.unique(pairs[:, i])) for i in (0, 1))
            if len(pairs) == ones == others > 1:
                return axis
        return None

    def _cells_of(
        self, key: str, axis: int, entries: list[torch.Tensor], cells: torch.Tensor
    ) -> torch.Tensor:
        """Return the cell of each place of a table, in the order of its axes without the channels'."""
        sizes = [size for a, size in enumerate(self.shapes[key]) if a != axis]
        place = torch.zeros(cells.shape, dtype=torch.int64)
        for size, entry in zip(sizes, entries[:axis] + entries[axis + 1 :], strict=True):
            place = place * size + entry
        found = torch.full((prod(sizes),), UNKNOWN)
        used = torch.stack([e.expand(cells.shape) for e in entries]).amin(0) >= 0
        found[place[used]] = cells[used]
        return found

    def _spread(self, value: Activation, shape: torch.Size) -> Activation:
        return replace(
            value, channels=value.channels.expand(shape), cells=value.cells.expand(shape)
        )

    def _reduced(
        self, name: str, args: Any, kwargs: Any, value: Activation, result: torch.Tensor
    ) -> Known | None:
        """Return what a mean or sum over axes, a pooling or a resize makes of a value."""
        number = self._add(Step(name=name, sources=(value.step,)))
        unknown = torch.full(result.shape, UNKNOWN)
        if any(part in name for part in _SPATIAL) and result.dim() == value.channels.dim() >= 3:
            firsts = value.channels.flatten(2)[:, :, :1]
            channels = firsts.view(*firsts.shape[:2], *[1] * (result.dim() - 2))
            return self._on_grid(channels.expand(result.shape), result, number)
        if name in ("mean", "sum", "amax", "amin") and len(args) > 1:
            keep = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
            dims = args[1] if isinstance(args[1], list | tuple) else [args[1]]
            low, high = (
                f(self.nodes.roots(value.channels), dims, keep) for f in (torch.amin, torch.amax)
            )
            channels = torch.where(low == high, low, unknown)
            return Activation(channels=channels, cells=unknown, step=number)
        if result.dim() == value.channels.dim() and result.numel() > value.channels.numel():
            spread = torch.broadcast_shapes(value.channels.shape, result.shape) == result.shape
            if spread:
                return replace(self._spread(value, result.shape), step=number)
        return Activation(channels=unknown, cells=unknown, step=number)

    def _on_grid(self, channels: torch.Tensor, result: torch.Tensor, step: int) -> Activation:
        cells = torch.full(result.shape, UNKNOWN)
        if result.dim() == 4:
            height, width = result.shape[2:]
            self._grid = (height, width)
            cells = torch.arange(height * width).view(height, width).expand(result.shape)
        return Activation(channels=channels, cells=cells, step=step)

    # layers with weights

    def _norm(self, name: str, args: Any) -> Known | None:
        value = self._find(args[0])
        if not isinstance(value, Activation):
            return None
        keys: list[str | None] = []
        is_flat = "layer" in name or "rms" in name
        dim = -1 if is_flat else 1
        line = value.channels.movedim(dim, -1).reshape(-1, value.channels.shape[dim])[0]
        for tensor in args[1:]:
            view = self._find(tensor) if isinstance(tensor, torch.Tensor) else None
            if isinstance(view, WeightView) and len(view.entries) == 1:
                self.nodes.unite(line, self.nodes.of(view.key, 0, view.entries[0]))
                keys.append(view.key)
        weight, bias, *_ = [*keys, None, None]
        step = NormStep(name=name, sources=(value.step,), weight=weight, bias=bias, channels=line)
        return replace(value, step=self._add(step), factor=1.0)

    def _convolution(self, args: Any, result: torch.Tensor) -> Known | None:
        value, view = self._find(args[0]), self._find(args[1])
        if not isinstance(value, Activation) or not isinstance(view, WeightView):
            return None
        groups, is_transposed = args[8], args[6]
        line = value.channels.flatten(2)[0, :, 0]
        rows, columns = (torch.arange(size) for size in self.shapes[view.key][:2])
        outputs = self.nodes.of(view.key, 0, rows)
        if is_transposed or len(self.shapes[view.key]) < 3:
            return None
        if groups == 1:
            self.nodes.unite(line, self.nodes.of(view.key, 1, columns))
        elif groups == len(line) == len(outputs):
            self.nodes.unite(line, outputs)
        bias = self._bias(args[2], outputs)
        step = ContractionStep(
            name="convolution",
            sources=(value.step,),
            key=view.key,
            row_axis=0,
            column_axis=1,
            rows=rows,
            columns=columns,
            inputs=line,
            outputs=outputs,
            bias=bias,
            reads_image=value.reads_image,
            groups=groups,
            grid=(result.shape[2], result.shape[3]) if result.dim() == 4 else None,
        )
        channels = outputs.view(1, -1, *[1] * (result.dim() - 2)).expand(result.shape)
        return self._on_grid(channels, result, self._add(step))

    def _bias(self, tensor: Any, outputs: torch.Tensor) -> str | None:
        view = self._find(tensor) if isinstance(tensor, torch.Tensor) else None
        if not isinstance(view, WeightView) or len(view.entries) != 1:
            return None
        self.nodes.unite(outputs, self.nodes.of(view.key, 0, view.along(0, -1)))
        return view.key

    def _product(
        self, name: str, left: torch.Tensor, right: torch.Tensor, result: torch.Tensor, bias: Any
    ) -> Known | None:
        one, other = self._find(left), self._find(right)
        if isinstance(one, Activation) and isinstance(other, WeightView):
            return self._linear(one, other, result, bias)
        if isinstance(one, Activation) and isinstance(other, Activation):
            return self._mix(name, one, other, result)
        return None

    def _linear(
        self, value: Activation, view: WeightView, result: torch.Tensor, bias: Any
    ) -> Known | None:
        column_axis, row_axis = view.axis_along(-2), view.axis_along(-1)
        channels, cells = value.channels, value.cells
        if column_axis is None or row_axis is None or column_axis == row_axis:
            return None
        rows, columns = view.along(row_axis, -1), view.along(column_axis, -2)
        outputs = self.nodes.of(view.key, row_axis, rows)
        if not varies(channels, -1):  # a product over tokens leaves the channels
            number = self._add(Step(name="linear", sources=(value.step,)))
            spread = channels[..., :1].expand(result.shape)
            unknown = torch.full(result.shape, UNKNOWN)
            return Activation(channels=spread, cells=unknown, step=number)
        self.nodes.unite(channels, self.nodes.of(view.key, column_axis, columns))
        pixels = self._pixels(cells[0]) if value.reads_image else None
        step = ContractionStep(
            name="linear",
            sources=(value.step,),
            key=view.key,
            row_axis=row_axis,
            column_axis=column_axis,
            rows=rows,
            columns=columns,
            inputs=channels.reshape(-1, channels.shape[-1])[0],
            outputs=outputs,
            bias=self._bias(bias, outputs),
            reads_image=value.reads_image,
            pixels=pixels,
        )
        places = self._patch_cells(cells[..., 0]) if value.reads_image else cells[..., 0]
        return Activation(
            channels=outputs.expand(result.shape),
            cells=places[..., None].expand(result.shape),
            step=self._add(step),
        )

    def _pixels(self, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows and columns of a patch's pixels, counted from its first."""
        assert self._grid is not None  # the images were read
        rows, columns = cells // self._grid[1], cells % self._grid[1]
        return rows - rows.min(), columns - columns.min()

    def _patch_cells(self, cells: torch.Tensor) -> torch.Tensor:
        """Return the places of patches in their grid, by the places (N, T) of their first pixels."""
        assert self._grid is not None  # the images were read
        rows = torch.unique(cells // self._grid[1], return_inverse=True)
        columns = torch.unique(cells % self._grid[1], return_inverse=True)
        self._grid = (len(rows[0]), len(columns[0]))
        places: torch.Tensor = rows[1] * self._grid[1] + columns[1]
        return places

    # attention

    def _mix(
        self, name: str, one: Activation, other: Activation, result: torch.Tensor
    ) -> Known | None:
        """Products of two values: of queries with keys, or of attention with values."""
        unknown = torch.full(result.shape, UNKNOWN)
        if one.step in self._scores and result.shape[-1] == other.channels.shape[-1]:
            queries, keys, factor = self._scores[one.step]
            values = other.channels[..., 0, :]
            if len(values) == len(queries):
                step = self._attend(name, (one, other), [queries, keys, values], factor)
                channels = other.channels[..., :1, :].expand(result.shape)
                cells = _query_cells(one, result)
                return Activation(channels=channels, cells=cells, step=step)
        number = self._add(Step(name=name, sources=(one.step, other.step)))
        if varies(one.channels, -1) and varies(other.channels, -2):
            left, right = one.channels[..., 0, :], other.channels[..., :, 0]
            self._scores[number] = (left, right, one.factor * other.factor)
        return Activation(channels=unknown, cells=_query_cells(one, result), step=number)

    def _inherit_scores(self, step: int, later: int, factor: float = 1.0) -> None:
        if step in self._scores:
            queries, keys, before = self._scores[step]
            self._scores[later] = queries, keys, before * factor

    def _attention(self, name: str, args: Any, kwargs: Any, result: torch.Tensor) -> Known | None:
        parts = [self._find(tensor) for tensor in args[:3]]
        if not all(isinstance(part, Activation) for part in parts):
            return None
        queries, keys, values = (part for part in parts if isinstance(part, Activation))
        scale = kwargs.get("scale") or queries.channels.shape[-1] ** -0.5
        nodes = (queries.channels, keys.channels, values.channels)
        factor = scale * queries.factor * keys.factor
        step = self._attend(name, (queries, keys, values), [n[..., 0, :] for n in nodes], factor)
        return Activation(
            channels=values.channels[..., :1, :].expand(result.shape),
            cells=queries.cells[..., :1].expand(result.shape),
            step=step,
        )

    def _attend(
        self,
        name: str,
        parts: tuple[Activation, ...],
        nodes: Sequence[torch.Tensor],
        factor: float,
    ) -> int:
        """Add a step of attention by the nodes (..., C) of queries, keys and values."""
        sources = tuple({part.step: None for part in parts})
        rows = (map(tuple, n.flatten(0, -2).tolist()) for n in nodes)
        heads = list(dict.fromkeys(zip(*rows, strict=False)))
        queries, keys, values = (torch.tensor([head[i] for head in heads]) for i in range(3))
        step = AttentionStep(
            name=name, sources=sources, queries=queries, keys=keys, values=values, factor=factor
        )
        return self._add(step)

    # what is known of tensors

    def _find(self, tensor: torch.Tensor) -> Known | None:
        return self._known.get(id(tensor))

    def _set(self, tensor: torch.Tensor, known: Known) -> None:
        self._held.append(tensor)
        self._known[id(tensor)] = known

    def _add(self, step: Step) -> int:
        self.steps.append(step)
        return len(self.steps) - 1


def _line(channels: torch.Tensor) -> torch.Tensor:
    """Return the nodes along the axis on which they change, at the first place of the others."""
    dims = [d for d in range(channels.dim()) if varies(channels, d)]
    dim = dims[-1] if dims else -1
    return channels.movedim(dim, -1).reshape(-1, channels.shape[dim])[0]


def _query_cells(scores: Activation, result: torch.Tensor) -> torch.Tensor:
    return scores.cells[..., :1].expand(result.shape)


def _factor(name: str, args: Any) -> float | None:
    """Return the number that a value is multiplied by, if that is all that is done."""
    if len(args) < 2 or name not in ("mul", "mul_", "div", "div_"):
        return None
    number = args[1]
    if isinstance(number, torch.Tensor):
        if number.numel() != 1:
            return None
        number = number.item()
    return float(number) if name.startswith("mul") else 1.0 / float(number)
