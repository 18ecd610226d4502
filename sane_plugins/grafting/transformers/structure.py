"""The parts of a transformer, found in its run: the residual stream, and the branches that read and write it.

The stream is what residual sums share; a branch is what lies between two of them.
The method: docs/explanation/sane.md, section 11.4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from sane_plugins.grafting.transformers.channel_nodes import ChannelNodes
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
from sane_plugins.grafting.transformers.traced_run import TracedRun


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
    rotation lies between. `inner_norms` are norms between readers and writer.
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


def read_structure(execution: TracedRun) -> TokenNetwork | None:
    """Return the parts of a network whose attention all adds to one residual stream; None for others."""
    count = sum(isinstance(step, AttentionStep) for step in execution.steps)
    for network in read_streams(execution):
        if count == sum(branch.attention is not None for branch in network.branches):
            return network
    return None


def read_streams(execution: TracedRun) -> Iterator[TokenNetwork]:
    """Yield the parts around each residual stream that attention adds to, those of most sums first."""
    if not any(isinstance(step, AttentionStep) for step in execution.steps):
        return
    for stream in _streams(execution):
        network = _StructureReader(execution, stream).read()
        if network is not None:
            yield network


def _streams(execution: TracedRun) -> Iterator[torch.Tensor]:
    """Yield the channels of sums, in the order of their first sum."""
    sums = [step for step in execution.steps if isinstance(step, SumStep)]
    roots = [execution.nodes.roots(step.channels) for step in sums]
    counts = Counter(tuple(sorted(r.tolist())) for r in roots if len(r) > 1)
    for channels, _ in counts.most_common():
        if len(set(channels)) == len(channels) and channels[0] >= 0:
            yield next(r for r in roots if tuple(sorted(r.tolist())) == channels)


class _StructureReader:
    """Reads the parts of one execution."""

    def __init__(self, execution: TracedRun, stream: torch.Tensor) -> None:
        self.steps, self.nodes = execution.steps, execution.nodes
        self._shapes = execution.shapes
        self.stream = stream
        self._channels = set(stream.tolist())
        self._readers_of: dict[int, list[int]] = {}
        for index, step in enumerate(self.steps):
            for source in step.sources:
                self._readers_of.setdefault(source, []).append(index)

    def read(self) -> TokenNetwork | None:
        sums = [
            i for i, s in enumerate(self.steps) if isinstance(s, SumStep) and self._in(s.channels)
        ]
        branches: list[Branch] = []
        for index in sums:
            branch = self._branch(index)
            if branch is not None:
                branches.append(branch)
        if not any(branch.attention is not None for branch in branches):
            return None
        stem = range(branches[0].sum_index)
        last = branches[-1].sum_index
        used = {p.index for b in branches for p in (*b.readers, b.writer)}
        return TokenNetwork(
            stream=self.stream,
            stem=tuple(p for p in self._linear_parts(stem) if p.index not in used),
            tokens=tuple(self._tokens(branches[0].sum_index)),
            tables=tuple(
                s
                for s in self.steps
                if isinstance(s, TableStep) and self._in(self._parameter_nodes(s.key, s.axis))
            ),
            branches=tuple(branches),
            tail_norms=tuple(
                s
                for s in self.steps[last + 1 :]
                if isinstance(s, NormStep) and s is not branches[-1].post_norm
            ),
            tail=tuple(self._linear_parts(range(last + 1, len(self.steps)))),
            is_rotatable=self._is_rotatable(last),
            nodes=self.nodes,
        )

    def _in(self, nodes: torch.Tensor) -> bool:
        roots = self.nodes.roots(nodes).tolist()
        return len(roots) == len(self._channels) and set(roots) == self._channels

    def _parameter_nodes(self, key: str, axis: int) -> torch.Tensor:
        return self.nodes.of(key, axis, torch.arange(self._shapes[key][axis]))

    def _tokens(self, first_sum: int) -> Iterator[TokenStep]:
        """Yield tokens, and vectors that are added in the stem: a class token beside zeros."""
        for step in self.steps[:first_sum]:
            if isinstance(step, TokenStep) and self._in(self._parameter_nodes(step.key, step.axis)):
                yield step
            if isinstance(step, VectorStep) and not step.is_factor and self._is_token(step):
                shape = self._shapes[step.key]
                axis = max(range(len(shape)), key=lambda a: shape[a])
                if self._in(self._parameter_nodes(step.key, axis)):
                    yield TokenStep(name="token", sources=(), key=step.key, axis=axis)

    def _is_token(self, step: VectorStep) -> bool:
        """Return whether a vector is added to the stream, and not behind a linear layer as its bias."""
        return not isinstance(self.steps[step.sources[0]], ContractionStep)

    def _linear_parts(self, indices: Iterable[int]) -> list[LinearPart]:
        return [
            LinearPart(index=i, step=s, bias=s.bias or self._later_bias(i))
            for i in indices
            if isinstance(s := self.steps[i], ContractionStep)
        ]

    def _later_bias(self, index: int) -> str | None:
        """Return the vector that is added right behind a contraction."""
        for reader in self._readers_of.get(index, []):
            step = self.steps[reader]
            if isinstance(step, VectorStep) and not step.is_factor:
                return step.key
        return None

    def _branch(self, sum_index: int) -> Branch | None:
        """Return what a sum adds to the stream, or None where it is no branch that is understood."""
        skipped, added = self.steps[sum_index].sources
        if skipped in (before := self._upstream(added)):
            inside = before - self._upstream(skipped) - {skipped} | {added}
        elif added in (before := self._upstream(skipped)):
            inside = before - self._upstream(added) - {added} | {skipped}
        else:
            return None
        parts = self._linear_parts(sorted(inside))
        writers = [p for p in parts if self._in(p.step.outputs)]
        if not writers:
            return None
        writer = writers[-1]
        readers = [p for p in parts if p is not writer and self._in(p.step.inputs)]
        attentions = [s for i in inside if isinstance(s := self.steps[i], AttentionStep)]
        if not readers or len(attentions) > 1 or len(readers) + 1 != len(parts):
            return None
        norm = self._norm_before(readers[0])
        steps = [self.steps[i] for i in sorted(inside)]
        inner = tuple(s for s in steps if isinstance(s, NormStep) and s is not norm)
        return Branch(
            readers=tuple(readers),
            writer=writer,
            norm=norm,
            layer_scale=self._layer_scale(writer.index),
            post_norm=self._post_norm(sum_index, norm is not None),
            attention=attentions[0] if attentions else None,
            is_free=not inner and self._are_apart(attentions),
            inner_norms=inner,
            sum_index=sum_index,
        )

    def _are_apart(self, attentions: Sequence[AttentionStep]) -> bool:
        """Return whether no two channels of queries, or of keys, were made one: by a rotation, say."""
        made = [self.nodes.roots(n.flatten()) for a in attentions for n in (a.queries, a.keys)]
        return all(len(torch.unique(roots)) == len(roots) for roots in made)

    def _upstream(self, index: int) -> set[int]:
        """Return the steps that a step depends on."""
        found: set[int] = set()
        pending = [index]
        while pending:
            new = set(self.steps[pending.pop()].sources) - found
            found |= new
            pending += new
        return found

    def _norm_before(self, part: LinearPart) -> NormStep | None:
        step = self.steps[part.step.sources[0]]
        is_branch_norm = isinstance(step, NormStep) and not self._is_summed(part.step.sources[0])
        return step if is_branch_norm and isinstance(step, NormStep) else None

    def _post_norm(self, sum_index: int, has_norm: bool) -> NormStep | None:
        """Return the norm of a sum: the next sum adds to what is normalised, or no other norm follows."""
        is_last = not any(isinstance(s, SumStep) for s in self.steps[sum_index + 1 :])
        for index in self._readers_of.get(sum_index, []):
            step = self.steps[index]
            if isinstance(step, NormStep) and (
                self._is_summed(index) or (is_last and not has_norm)
            ):
                return step
        return None

    def _is_summed(self, index: int) -> bool:
        return any(
            isinstance(self.steps[reader], SumStep) for reader in self._readers_of.get(index, [])
        )

    def _layer_scale(self, index: int) -> str | None:
        """Return the vector that what is written is multiplied by, before the sum."""
        for reader in self._readers_of.get(index, []):
            step = self.steps[reader]
            if isinstance(step, VectorStep):
                return step.key if step.is_factor else self._layer_scale(reader)
        return None

    # which turns of the stream leave the function

    def _is_rotatable(self, last_sum: int) -> bool:
        """Return whether everything that reads the stream is a layer norm before linear layers.

        Layers behind the last sum are fitted to a task anyway.
        """
        states: dict[int, str] = {}
        for index, step in enumerate(self.steps):
            if index > last_sum and not isinstance(step, NormStep):
                continue
            state = _state(step, [states.get(s, "") for s in step.sources], self._writes(step))
            if state is None:
                return False
            states[index] = state
        return True

    def _writes(self, step: Step) -> bool:
        if isinstance(step, ContractionStep):
            return self._in(step.outputs)
        if isinstance(step, TokenStep):
            return self._in(self._parameter_nodes(step.key, step.axis))
        return False


def _state(step: Step, sources: Sequence[str], writes: bool) -> str | None:
    """Return what a step makes: "stream", "written" to it, "normed", ""; None where it forbids turns."""
    kinds = set(sources) - {""}
    if isinstance(step, ContractionStep):
        return None if kinds & {"stream", "written"} else "written" if writes else ""
    if isinstance(step, ImageStep) or not kinds:
        return "stream" if writes else ""
    if isinstance(step, NormStep):
        is_layer_norm = step.name == "native_layer_norm"
        return "normed" if is_layer_norm and not kinds & {"normed"} else None
    if isinstance(step, VectorStep):
        if kinds == {"written"}:
            return "written"
        return "stream" if kinds == {"stream"} and not step.is_factor else None
    if isinstance(step, SumStep | TableStep) or step.name == "join":
        return None if "normed" in kinds else "stream"
    if step.name == "mean":
        return next(iter(kinds)) if len(kinds) == 1 else None
    return None
