"""Find the parts of a transformer in its run: streams by their sums, branches by what the sums add.

The method: docs/explanation/sane.md, section 11.4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch

from sane_plugins.grafting.transformers.structure import Branch, LinearPart, TokenNetwork
from sane_plugins.grafting.transformers.tracing import (
    AttentionStep,
    ContractionStep,
    ImageStep,
    NormStep,
    Step,
    SumStep,
    TableStep,
    TokenStep,
    TracedRun,
    VectorStep,
)


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
        one_sum = self.steps[sum_index]
        assert isinstance(one_sum, SumStep)
        skipped, added = one_sum.sources
        if added in self._upstream(skipped):
            skipped, added = added, skipped
        elif skipped not in self._upstream(added):
            return None
        inside = self._upstream(added) - self._upstream(skipped) - {skipped} | {added}
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
            sum=one_sum,
            skip_call=self.steps[skipped].call,
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
