"""What is known of a value in a traced run: its channels, its places in the image, where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sane_plugins.grafting.transformers.tracing.channel_nodes import UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Activation:
    """A value computed from the images.

    `channels` and `cells` have its shape: each entry's node, and its place in the patch grid row by row.
    `step` is the step of the run that made it, `factor` what it was multiplied by since; `reads_image` says
    that no weights were applied yet.
    """

    channels: torch.Tensor
    cells: torch.Tensor
    step: int
    factor: float = 1.0
    reads_image: bool = False


@dataclass(frozen=True, kw_only=True)
class WeightView:
    """A parameter, or entries of one: for each axis of the parameter, which of its entries lies where.

    `added` are views of other parameters, of the same shape, that were added to it.
    """

    key: str
    entries: tuple[torch.Tensor, ...]
    added: tuple[WeightView, ...] = ()

    def axis_along(self, dim: int) -> int | None:
        """Return the parameter's only axis whose entry changes along a dimension of the view."""
        axes = [a for a, entry in enumerate(self.entries) if varies(entry, dim)]
        return axes[0] if len(axes) == 1 else None

    def along(self, axis: int, dim: int) -> torch.Tensor:
        """Return the entries of an axis along a dimension of the view."""
        entry = self.entries[axis].movedim(dim, 0)
        return entry.reshape(entry.shape[0], -1)[:, 0]


Known = Activation | WeightView


def whole_parameter(key: str, shape: Sequence[int]) -> WeightView:
    """Return the view that is all of a parameter."""
    entries = []
    for axis, size in enumerate(shape):
        ones = [1] * len(shape)
        ones[axis] = size
        entries.append(torch.arange(size).view(ones).expand(*shape))
    return WeightView(key=key, entries=tuple(entries))


def varies(entries: torch.Tensor, dim: int) -> bool:
    """Return whether entries change along a dimension."""
    first = entries.narrow(dim, 0, 1)
    return entries.shape[dim] > 1 and bool((entries != first).any())


def moved(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    find: Callable[[torch.Tensor], Known | None],
) -> list[Known | None]:
    """Return what is known of the results of a function that moves entries and computes nothing."""
    known = [k for t in tensors_in((args, kwargs)) if (k := find(t)) is not None]
    activations = [k for k in known if isinstance(k, Activation)]

    def run(pick: Callable[[Any], torch.Tensor | None]) -> list[torch.Tensor]:
        return _run(func, args, kwargs, find, pick)

    if activations:
        latest = max(activations, key=lambda a: a.step)
        made = replace(latest, reads_image=all(a.reads_image for a in activations))
        channels = run(lambda k: k.channels if isinstance(k, Activation) else None)
        cells = run(lambda k: k.cells if isinstance(k, Activation) else None)
        pairs = zip(channels, cells, strict=True)
        return [replace(made, channels=channel, cells=cell) for channel, cell in pairs]
    views = [k for k in known if isinstance(k, WeightView)]
    if len(views) != 1:
        return [None]
    moved_views = [_moved_view(view, run, views[0]) for view in (views[0], *views[0].added)]
    return [replace(first, added=tuple(rest)) for first, *rest in zip(*moved_views, strict=True)]


def _moved_view(
    view: WeightView,
    run: Callable[[Callable[[Any], torch.Tensor | None]], list[torch.Tensor]],
    held: WeightView,
) -> list[WeightView]:
    def entry_of(entry: torch.Tensor) -> Callable[[Any], torch.Tensor | None]:
        return lambda k: entry if k is held else None

    parts = [run(entry_of(entry)) for entry in view.entries]
    return [WeightView(key=view.key, entries=entries) for entries in zip(*parts, strict=True)]


def _run(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    find: Callable[[torch.Tensor], Known | None],
    pick: Callable[[Any], torch.Tensor | None],
) -> list[torch.Tensor]:
    """Run the function on what `pick` says of each tensor, and on "unknown" where nothing is said."""

    def stand_in(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            known = find(value)
            picked = None if known is None else pick(known)
            if picked is not None:
                return picked
            is_index = known is None and not value.is_floating_point()
            return value.cpu() if is_index else torch.full(value.shape, UNKNOWN)
        if isinstance(value, list | tuple):
            return type(value)(stand_in(v) for v in value)
        return value

    arguments = [stand_in(a) for a in args]
    options = {k: stand_in(v) for k, v in kwargs.items() if k not in ("dtype", "device", "layout")}
    if func is torch.ops.aten.constant_pad_nd.default:
        arguments = [*arguments[:2], UNKNOWN]
    try:
        result = func(*arguments, **options)
    except RuntimeError:  # a view of what only a copy can be
        copies = [a.contiguous() if isinstance(a, torch.Tensor) else a for a in arguments]
        result = func(*copies, **options)
    return list(tensors_in(result))


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Return the tensors of nested containers, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in tensors_in(part)]
    return []
