"""The parts of a transformer, found in its run: the residual stream, and the branches that read and write it.

The stream is what residual sums share; a branch is what lies between two of them.
The method: docs/explanation/sane.md, section 11.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from sane_plugins.grafting.transformers.tracing import (
    AttentionStep,
    ChannelNodes,
    ContractionStep,
    NormStep,
    SumStep,
    TableStep,
    TokenStep,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearPart:
    """A contraction with the bias that is added to it; `index` is its step."""

    index: int
    step: ContractionStep
    bias: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Branch:
    """What is added to the stream in one sum.

    `readers` read the stream, behind `norm` where there is one; `writer` writes it, `layer_scale`
    multiplies what it writes; `post_norm` normalises the sum. `attention` is None in an MLP. `is_free` says
    that queries and keys meet as they were made, so that channels within a head may be mixed: no norm or
    rotation lies between. `inner_norms` are norms between readers and writer. `skip_call` is the operator
    that made what is added to.
    """

    readers: tuple[LinearPart, ...]
    writer: LinearPart
    norm: NormStep | None
    layer_scale: str | None
    post_norm: NormStep | None
    attention: AttentionStep | None
    is_free: bool
    inner_norms: tuple[NormStep, ...]
    sum_index: int
    sum: SumStep
    skip_call: int

    @property
    def heads(self) -> tuple[int, int]:
        """Return the number of heads and their width; (0, 0) in an MLP."""
        if self.attention is None:
            return 0, 0
        heads, width = self.attention.values.shape
        return heads, width

    @property
    def hidden(self) -> int:
        """Return the number of channels that the writer reads."""
        return len(self.writer.step.inputs)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenNetwork:
    """A network of one residual stream: `stream` are its channels, `stem` what first writes to it.

    `tail_norms` and `tail` come behind the last sum. `is_rotatable` says that the stream is read behind
    layer norms only, so that it may be turned.
    """

    stream: torch.Tensor
    stem: tuple[LinearPart, ...]
    tokens: tuple[TokenStep, ...]
    tables: tuple[TableStep, ...]
    branches: tuple[Branch, ...]
    tail_norms: tuple[NormStep, ...]
    tail: tuple[LinearPart, ...]
    is_rotatable: bool
    nodes: ChannelNodes

    @property
    def width(self) -> int:
        """Return the number of channels of the stream."""
        return len(self.stream)

    @property
    def image_flops(self) -> int:
        """Return about how many operations one image takes: the matrices of its branches."""
        matrices = sum(
            2 * self.width * (sum(len(p.step.rows) for p in b.readers) + b.hidden)
            for b in self.branches
        )
        return matrices * max(len(b.sum.cells) for b in self.branches)

    @cached_property
    def _place(self) -> dict[int, int]:
        return {int(root): i for i, root in enumerate(self.stream)}

    def stream_places(self, nodes: torch.Tensor) -> list[int]:
        """Return the place in the stream of each node; -1 for others."""
        return [self._place.get(root, -1) for root in self.nodes.roots(nodes).tolist()]

    def rows_of(self, values: torch.Tensor, key: str, axis: int) -> torch.Tensor:
        """Return a parameter's numbers as rows (places, D), channels in the order of the stream."""
        order = torch.tensor(self._axis_places(key, axis)).argsort()
        return values.movedim(axis, -1).reshape(-1, values.shape[axis])[:, order]

    def from_rows(
        self, rows: torch.Tensor, like: torch.Tensor, key: str, axis: int
    ) -> torch.Tensor:
        """Return such rows in the shape of a parameter."""
        rows = rows[:, torch.tensor(self._axis_places(key, axis))]
        return rows.view(like.movedim(axis, -1).shape).movedim(-1, axis)

    def _axis_places(self, key: str, axis: int) -> list[int]:
        return self.stream_places(self.nodes.of(key, axis, torch.arange(self.width)))

    def is_stream(self, nodes: torch.Tensor) -> bool:
        """Return whether these nodes are the stream's channels, in any order."""
        return sorted(self.stream_places(nodes)) == list(range(self.width))
