"""Cut weights into tokens (T, D) and put them back, bit for bit.

The method: docs/explanation/sane.md, sections 1.1 and 1.2; paper section 3.1.

`cut_rows` and its inverse `join_rows` are the only functions that know the layout of rows in tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from sane_plugins.display import ShortRepr
from sane_plugins.errors import SourceError
from sane_plugins.weights.graph import WeightGraph
from sane_plugins.weights.token_layout import Slot, TokenLayout


@dataclass(frozen=True, eq=False, repr=False)
class Tokens(ShortRepr):
    """Weight tokens of one network.

    values (T, D) float, mask (T, D) bool (true where a value is real), positions (T, 3) int64: the
    token's index in the sequence, slot number, channel number.
    """

    values: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor

    def __len__(self) -> int:
        return len(self.values)


def tokenize(graph: WeightGraph, width: int, device: torch.device | str = "cpu") -> Tokens:
    """Cut a network into tokens on `device`, reading one tensor at a time.

    Values are float32, or float64 where the network has a float64 tensor, so that nothing is lost.
    """
    layout = graph.token_layout(width)
    # float32 holds every value of a narrower type; only float64 needs more.
    is_double = any(param.dtype == torch.float64 for param in graph.params)
    values = token_values(graph, width, torch.float64 if is_double else torch.float32, device)
    return Tokens(values, layout.mask(device), layout.to(device).positions())


def detokenize(tokens: Tokens, graph: WeightGraph) -> WeightGraph:
    """Put tokens back into the network that they were cut from, or one of the same shapes.

    Raises `SourceError` where the number of tokens does not fit the network.
    """
    layout = graph.token_layout(tokens.values.shape[1])
    if len(tokens) != len(layout):
        raise SourceError(
            graph.source,
            f"{len(tokens)} tokens were given",
            f"this network takes {len(layout)}",
            "use the tokens of a network of the same shapes",
        )
    return graph.replace(token_tensors(tokens.values, layout))


def token_values(
    graph: WeightGraph, width: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Cut a network into the values (T, D) of its tokens, of type `dtype`."""
    layout = graph.token_layout(width)
    # Fresh memory is written once, in few large steps: values in place, zeros only where rows end.
    values = torch.empty(len(layout), width, dtype=dtype, device=device)
    for slot, block in layout.blocks(values):
        cut_rows(block, slot, _read_rows(graph, slot, values))
    return values


def token_tensors(
    values: torch.Tensor, layout: TokenLayout, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """Assemble the values (T, D) of tokens into tensors by key, each of its own type or all of `dtype`."""
    tensors: dict[str, torch.Tensor] = {}
    for slot, block in layout.blocks(values):
        tensors |= join_rows(block, slot, dtype)
    return tensors


def cut_rows(
    block: torch.Tensor,
    slot: Slot,
    tensors: Iterable[torch.Tensor],
    *,
    first: int = 0,
    scale: Sequence[tuple[float, float]] = (),
) -> None:
    """Cut R rows of a slot into tokens: write weight, bias and zeros side by side into `block` (R, n).

    `tensors` are those rows of the weight and of the bias, (R, ...) each. The block holds n columns from
    `first` on. `scale` is the mean and deviation that each tensor is standardised by: float64 before it is
    rounded to the block's type, other types after.
    """
    for i, (part, rows) in enumerate(_aligned_parts(block, slot, tensors, first)):
        if not scale:
            part.copy_(rows)
        elif rows.dtype == torch.float64:
            part.copy_((rows - scale[i][0]) / scale[i][1])
        else:
            part.copy_(rows).sub_(scale[i][0]).div_(scale[i][1])
    block[:, max(slot.columns - first, 0) :] = 0


def join_rows(
    block: torch.Tensor, slot: Slot, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """Assemble all rows of a slot (rows, pieces * D) into its weight and bias, in new memory."""
    tensors = {
        p.key: torch.empty(p.shape, dtype=dtype or p.dtype, device=block.device)
        for p in slot.params
    }
    views = (slot.row_view(param, tensors[param.key]) for param in slot.params)
    for part, rows in _aligned_parts(block, slot, views):
        rows.copy_(part)
    return tensors


def _aligned_parts(
    block: torch.Tensor, slot: Slot, tensors: Iterable[torch.Tensor], first: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield each tensor's part of a block with its rows, in equal shapes, so that one copy fits any axes."""
    weight = slot.columns - (slot.bias is not None)
    for start, stop, rows in zip((0, weight), (weight, slot.columns), tensors, strict=False):
        part = block[:, max(start - first, 0) : max(stop - first, 0)]
        if part.numel() != rows.numel():  # the block holds a piece of one row
            begin = max(first - start, 0)
            rows = rows.reshape(len(block), -1)[:, begin : begin + part.shape[1]]
        yield part.view(rows.shape), rows


def _read_rows(graph: WeightGraph, slot: Slot, like: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the rows of a slot's tensors on the tokens' device, copied asynchronously to CUDA."""
    for param in slot.params:
        tensor = graph.tensors[param.key].detach()
        if like.is_cuda and not tensor.is_cuda:
            tensor = tensor.contiguous().pin_memory()
        yield slot.row_view(param, tensor.to(like.device, non_blocking=like.is_cuda))
