"""Read and write the weights of branches in one form: fused or split, rows in any order.

Channels of the stream are in the stream's order; a row's bias is its last column.
The method: docs/explanation/sane.md, section 11.4.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import torch
from torch import nn

from sane_plugins.grafting.transformers.head_maps import HeadWeights, HiddenWeights
from sane_plugins.grafting.transformers.structure import Branch, LinearPart, TokenNetwork

_RowPlace = tuple[LinearPart, int]  # a part, and one of its rows


class BranchWeights:
    """The parameters of one network on the CPU; those that are written, which `changed` names, are copies."""

    def __init__(self, module: nn.Module, network: TokenNetwork) -> None:
        self.network = network
        self.values: MutableMapping[str, torch.Tensor] = {
            key: p.detach().cpu() for key, p in module.named_parameters()
        }
        self.changed: set[str] = set()

    # whole layers, with the stream on one side

    def matrix(self, part: LinearPart) -> torch.Tensor:
        """Return a part's weight (rows, columns, *kernel)."""
        step = part.step
        weight = self.values[step.key].movedim((step.row_axis, step.column_axis), (0, 1))
        return weight[step.rows][:, step.columns]

    def bias(self, part: LinearPart) -> torch.Tensor:
        """Return a number per row of a part; zeros where it has no bias."""
        if part.bias is None:
            return torch.zeros(len(part.step.rows))
        return self.values[part.bias][self._bias_rows(part)]

    def set_matrix(self, part: LinearPart, weight: torch.Tensor) -> None:
        """Write a part's weight (rows, columns, *kernel)."""
        step = part.step
        values = self._writable(step.key)
        view = values.movedim((step.row_axis, step.column_axis), (0, 1))
        view[step.rows[:, None], step.columns[None]] = weight.to(view)

    def set_bias(self, part: LinearPart, bias: torch.Tensor) -> None:
        """Write a number per row of a part; nothing where it has no bias."""
        if part.bias is not None:
            self.set_rows(part.bias, self._bias_rows(part), bias)

    def set_rows(self, key: str, rows: torch.Tensor, values: torch.Tensor) -> None:
        """Write entries of a parameter along its first axis."""
        mine = self._writable(key)
        mine[rows] = values.to(mine)

    def vector(self, key: str) -> torch.Tensor:
        """Return a parameter with a number per channel, flat."""
        return self.values[key].flatten()

    def set_all(self, key: str, values: torch.Tensor) -> None:
        """Write a whole parameter, of any shape with as many numbers."""
        mine = self._writable(key)
        mine.copy_(values.reshape(mine.shape))

    def _writable(self, key: str) -> torch.Tensor:
        if key not in self.changed:
            self.values[key] = self.values[key].clone()
            self.changed.add(key)
        return self.values[key]

    def _bias_rows(self, part: LinearPart) -> torch.Tensor:
        assert part.bias is not None
        rows = part.step.rows
        return rows if len(self.values[part.bias]) > int(rows.max()) else torch.arange(len(rows))

    # branches

    def writer(self, branch: Branch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what writes the stream: weight (D, F) and bias (D,)."""
        part = branch.writer
        rows = torch.tensor(self.network.stream_places(part.step.outputs)).argsort()
        return _flat(self.matrix(part))[rows], self.bias(part)[rows]

    def set_writer(self, branch: Branch, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Write what `writer` returns."""
        part = branch.writer
        places = torch.tensor(self.network.stream_places(part.step.outputs))
        self.set_matrix(part, _like_kernel(weight[places], self.matrix(part)))
        self.set_bias(part, bias[places])

    def rows(self, places: Mapping[int, _RowPlace], nodes: torch.Tensor) -> torch.Tensor:
        """Return what reads the stream for these nodes: (len(nodes), D + 1)."""
        read: dict[int, torch.Tensor] = {}
        for part, _ in places.values():
            if part.index not in read:
                order = torch.tensor(self.network.stream_places(part.step.inputs)).argsort()
                weight = _flat(self.matrix(part))[:, order]
                read[part.index] = torch.cat((weight, self.bias(part)[:, None]), 1)
        return torch.stack([read[places[n][0].index][places[n][1]] for n in nodes.tolist()])

    def set_reading(
        self, places: Mapping[int, _RowPlace], nodes: torch.Tensor, rows: torch.Tensor
    ) -> None:
        """Write what `rows` returns."""
        by_part: dict[int, list[tuple[int, int]]] = {}
        parts: dict[int, LinearPart] = {}
        for i, node in enumerate(nodes.tolist()):
            part, row = places[node]
            parts[part.index] = part
            by_part.setdefault(part.index, []).append((i, row))
        for index, pairs in by_part.items():
            part = parts[index]
            order = torch.tensor(self.network.stream_places(part.step.inputs))
            sources, targets = torch.tensor(pairs).unbind(1)
            weight, bias = self.matrix(part).clone(), self.bias(part).clone()
            weight[targets] = _like_kernel(rows[sources][:, :-1][:, order], weight)
            bias[targets] = rows[sources][:, -1]
            self.set_matrix(part, weight)
            self.set_bias(part, bias)

    def heads(self, branch: Branch) -> HeadWeights | None:
        """Return an attention branch's weights by head; None where heads share rows, or rows are missing."""
        attention = branch.attention
        if attention is None:
            return None
        places = row_places(branch)
        groups = (attention.queries, attention.keys, attention.values)
        nodes = torch.cat([g.flatten() for g in groups]).tolist()
        inputs = branch.writer.step.inputs
        columns = {int(n): i for i, n in enumerate(inputs)}
        values = attention.values.flatten().tolist()
        if len(set(nodes)) < len(nodes) or not places.keys() >= set(nodes):
            return None
        if set(columns) != set(values):
            return None
        weight, bias = self.writer(branch)
        output = weight[:, [columns[n] for n in values]].unflatten(1, attention.values.shape)
        queries, keys, value_rows = (
            self.rows(places, g.flatten()).unflatten(0, g.shape) for g in groups
        )
        return HeadWeights(
            queries=queries,
            keys=keys,
            values=value_rows,
            output=output,
            bias=bias,
            factor=attention.factor,
        )

    def set_heads(self, branch: Branch, heads: HeadWeights) -> None:
        """Write what `heads` returns."""
        attention = branch.attention
        assert attention is not None
        places = row_places(branch)
        for group, rows in (
            (attention.queries, heads.queries),
            (attention.keys, heads.keys),
            (attention.values, heads.values),
        ):
            self.set_reading(places, group.flatten(), rows.flatten(0, 1))
        place = {n: i for i, n in enumerate(attention.values.flatten().tolist())}
        order = [place[n] for n in branch.writer.step.inputs.tolist()]
        self.set_writer(branch, heads.output.flatten(1)[:, order], heads.bias)

    def hidden(self, branch: Branch) -> HiddenWeights | None:
        """Return an MLP's weights by hidden channel; None where they are not found."""
        slots = self._hidden_slots(branch)
        if slots is None:
            return None
        places = row_places(branch)
        reading = torch.stack([self.rows(places, nodes) for nodes in slots.unbind(1)], 1)
        output, bias = self.writer(branch)
        return HiddenWeights(reading=reading, output=output, bias=bias)

    def set_hidden(self, branch: Branch, hidden: HiddenWeights) -> None:
        """Write what `hidden` returns."""
        slots = self._hidden_slots(branch)
        assert slots is not None
        places = row_places(branch)
        for i, nodes in enumerate(slots.unbind(1)):
            self.set_reading(places, nodes, hidden.reading[:, i])
        self.set_writer(branch, hidden.output, hidden.bias)

    def _hidden_slots(self, branch: Branch) -> torch.Tensor | None:
        """Return the nodes (F, S) of the rows that make each channel that the writer reads."""
        roots = self.network.nodes.roots
        makers: dict[int, list[int]] = {}
        for node in row_places(branch):
            makers.setdefault(int(roots(torch.tensor(node))), []).append(node)
        wanted = [makers.get(root, []) for root in roots(branch.writer.step.inputs).tolist()]
        counts = {len(nodes) for nodes in wanted}
        total = sum(len(nodes) for nodes in wanted)
        if counts - {1, 2} or len(counts) != 1 or len({n for w in wanted for n in w}) != total:
            return None
        return torch.tensor(wanted)


def row_places(branch: Branch) -> dict[int, _RowPlace]:
    """Return the part and row that makes each node."""
    return {
        node: (part, row)
        for part in branch.readers
        for row, node in enumerate(part.step.outputs.tolist())
    }


def _flat(weight: torch.Tensor) -> torch.Tensor:
    """Return a matrix, or the weight of a convolution over one pixel as one."""
    return weight.flatten(2).squeeze(2) if weight.dim() > 2 else weight


def _like_kernel(matrix: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return matrix.view(*matrix.shape, *[1] * (weight.dim() - 2))
