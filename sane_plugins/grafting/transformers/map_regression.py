"""Fit a fresh transformer to the maps of a trained convolutional network, branch by branch.

A token is to hold what lies over its cell: principal components of the maps of several depths, side by side
in the stream. Heads look at neighbors by their positions, hidden channels are drawn from pairs of tokens, and
what writes the stream is fitted to what the stream still lacks.
The method: docs/explanation/sane.md, section 16.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import pi, prod, sqrt

import torch
from torch import nn
from torch.nn.functional import unfold

from sane_plugins.grafting.execution import in_evaluation
from sane_plugins.grafting.fitting import ridge_steps
from sane_plugins.grafting.transformers.branch_weights import BranchWeights
from sane_plugins.grafting.transformers.embedding_graft import kernels_of, patch_layer, set_kernels
from sane_plugins.grafting.transformers.structure import Branch, LinearPart, TokenNetwork
from sane_plugins.grafting.transformers.token_regression import FittingMode
from sane_plugins.grafting.transformers.tracing import TableStep, TokenStep, plain_operators

_ROWS = 2**14  # tokens that a branch is fitted to
_TURNS = (
    0.5,
    1.0,
)  # of positions, in quarter turns per cell, after one quarter over the whole grid
_AMPLITUDE = 0.7  # of positions beside the content
_SHARPNESS = 8.0  # the score of the cell that a head looks at
_SLOPE = 3.0  # of a hidden channel between the two tokens that it was drawn from
# Where heads look, in rows and columns; None: everywhere.
_DIRECTIONS = (
    *(None, (0, 1), (0, -1), None, (1, 0), (-1, 0)),
    *(None, (1, 1), (-1, -1), None, (1, -1), (-1, 1)),
)


@dataclass(frozen=True)
class _Grid:
    """Cells of a grid (height, width), and angles per cell that tell their places."""

    size: tuple[int, int]
    rates: torch.Tensor

    @classmethod
    def of(cls, network: TokenNetwork) -> _Grid:
        """Return the grid of a network, with as many angles as fit into its heads; there may be none."""
        size = network.branches[0].sum.grid
        width = min((b.heads[1] for b in network.branches if b.attention is not None), default=0)
        turns = torch.tensor([1 / max(size), *_TURNS])[: width // 4]
        return cls(size=size, rates=pi / 2 * turns)

    def codes(self) -> torch.Tensor:
        """Return sines and cosines of rows, then of columns (cells, 4 * angles)."""
        axes = torch.meshgrid(*(torch.arange(n) for n in self.size), indexing="ij")
        angles = [x.flatten()[:, None] * self.rates for x in axes]
        return torch.cat([f(x) for x in angles for f in (torch.sin, torch.cos)], 1)

    def turn(self, direction: tuple[int, int]) -> torch.Tensor:
        """Return the matrix that makes the code of a cell that of its neighbor in a direction."""
        blocks = []
        for steps in direction:
            sine, cosine = (torch.diag(f(steps * self.rates)) for f in (torch.sin, torch.cos))
            blocks.append(torch.cat((torch.cat((cosine, sine), 1), torch.cat((-sine, cosine), 1))))
        made: torch.Tensor = torch.block_diag(*blocks)
        return made


@dataclass(frozen=True)
class _Bases:
    """Directions of the stream, across each other and across ones: `content` (D, C) and `places` (D, P).

    The last of `places` marks tokens that lie nowhere.
    """

    content: torch.Tensor
    places: torch.Tensor

    @classmethod
    def draw(cls, width: int, places: int, rng: torch.Generator) -> _Bases:
        drawn = torch.randn(width, width - 1, generator=rng)
        basis = torch.linalg.qr(torch.cat((torch.ones(width, 1), drawn), 1)).Q
        return cls(content=basis[:, 1 + places :], places=basis[:, 1 : 1 + places])


@torch.no_grad()
def fit_to_maps(
    target: nn.Module,
    network: TokenNetwork,
    images: torch.Tensor,
    maps: Sequence[torch.Tensor],
    penalty: float,
    rng: torch.Generator,
) -> tuple[frozenset[str], float] | None:
    """Fit a fresh target in place; return the parameters that changed, and the share of the maps explained.

    `network` holds its parts. `maps` (N, cells, C), one for each depth, hold what lies over the cells of its
    grid in images (N, C, H, W). None, and nothing, where no single layer makes tokens of patches.
    """
    weights, grid = BranchWeights(target, network), _Grid.of(network)
    layer = patch_layer(weights)
    patches = None if layer is None else _patches(images, kernels_of(weights, layer), grid.size)
    if layer is None or patches is None:
        return None
    bases = _Bases.draw(network.width, 4 * len(grid.rates) + 1, rng)
    goal = _principal(maps, bases.content.shape[1])
    _fit_patches(weights, layer, bases, patches, goal, penalty)
    if _write_places(weights, bases, grid):
        for number, branch in enumerate(network.branches):
            _look_around(weights, branch, bases, grid, number)
    fitting = _MapFitting(target, weights, bases, _tokens(goal, network), penalty, rng)
    with in_evaluation(target), plain_operators(), fitting:
        target(images)
    missing = prod(1 - share for share in fitting.explained)
    return frozenset(weights.changed | fitting.changed), 1 - missing


def _patches(
    images: torch.Tensor, kernels: torch.Tensor, grid: tuple[int, int]
) -> torch.Tensor | None:
    """Return what a patch layer reads (N, cells, C * h * w); None where its patches do not tile images."""
    size, taps = images.shape[2:], kernels.shape[2:]
    if tuple(n * t for n, t in zip(grid, taps, strict=True)) != tuple(size):
        return None
    found: torch.Tensor = unfold(images, tuple(taps), stride=tuple(taps)).transpose(1, 2)
    return found


def _principal(maps: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """Return the leading principal components of maps side by side (N, cells, width), an even share each.

    They have the root of their deviations; of each map all together have a mean square of 1.
    """
    parts, left = [], width
    for number, found in enumerate(maps):
        rows = found.flatten(0, 1)
        rows = rows - rows.mean(0)
        count = min(left // (len(maps) - number), rows.shape[1])
        values, vectors = torch.linalg.eigh((rows.T @ rows / len(rows)).double())
        scale = values[-count:].clamp_min(1e-12) ** -0.25
        scores = rows @ (vectors[:, -count:] * scale).to(rows)
        parts.append(scores / scores.square().mean().sqrt().clamp_min(1e-6))
        left -= count
    made = torch.cat(parts, 1)
    made = torch.cat((made, made.new_zeros(len(made), left)), 1)
    return made.view(*maps[0].shape[:2], width)


def _tokens(goal: torch.Tensor, network: TokenNetwork) -> torch.Tensor:
    """Return the goal of each token (N, T, C): of those that lie nowhere the mean."""
    cells = network.branches[0].sum.cells
    mean = goal.mean(1, keepdim=True)
    return torch.cat((goal, mean), 1)[:, torch.where(cells < 0, goal.shape[1], cells)]


def _fit_patches(
    weights: BranchWeights,
    layer: LinearPart,
    bases: _Bases,
    patches: torch.Tensor,
    goal: torch.Tensor,
    penalty: float,
) -> None:
    x, y = patches.flatten(0, 1), goal.flatten(0, 1)
    step = max(1, len(x) // _ROWS)
    x, y = x[::step], y[::step]
    mean, target_mean = x.mean(0), y.mean(0)
    weight = next(ridge_steps((x - mean)[None], (y - target_mean)[None], [penalty]))[0]
    bias = (target_mean - mean @ weight).cpu()
    places = torch.tensor(weights.network.stream_places(layer.step.outputs))
    kernels = kernels_of(weights, layer)
    written = (bases.content @ weight.T.cpu())[places]
    set_kernels(weights, layer, written.view_as(kernels))
    weights.set_bias(layer, (bases.content @ bias)[places])


def _write_places(weights: BranchWeights, bases: _Bases, grid: _Grid) -> bool:
    """Write positions into tables, and tokens that lie nowhere; return whether there are tables."""
    network, level = weights.network, sqrt(bases.content.shape[1])
    nowhere = level * bases.places[:, -1]
    length = max(1.0, sqrt(2 * len(grid.rates)))
    placed = (_AMPLITUDE * level / length) * grid.codes() @ bases.places[:, :-1].T
    tables = [t for t in network.tables if t.grid is not None and bool((t.cells >= 0).any())]
    for step in network.tokens:
        count = len(network.rows_of(weights.values[step.key], step.key, step.axis))
        _set_rows(weights, step, nowhere.expand(count, -1))
    for table in tables:
        rows = torch.cat((placed, torch.zeros(1, network.width)))
        _set_rows(weights, table, rows[torch.where(table.cells < 0, len(placed), table.cells)])
    return bool(tables) and len(grid.rates) > 0


def _set_rows(weights: BranchWeights, step: TokenStep | TableStep, rows: torch.Tensor) -> None:
    like = weights.values[step.key]
    weights.set_all(step.key, weights.network.from_rows(rows, like, step.key, step.axis))


def _look_around(
    weights: BranchWeights, branch: Branch, bases: _Bases, grid: _Grid, number: int
) -> None:
    """Let each head look at a neighbor, or everywhere; values keep their draws, with a deviation of 1."""
    fresh = weights.heads(branch) if branch.is_free else None
    if fresh is None:
        return
    queries, keys = torch.zeros_like(fresh.queries), torch.zeros_like(fresh.keys)
    read = bases.places[:, :-1].T
    length = _AMPLITUDE**2 / (1 + _AMPLITUDE**2) * weights.network.width  # squared, behind a norm
    factor = sqrt(_SHARPNESS / (fresh.factor * length))
    for head in range(len(queries)):
        direction = _DIRECTIONS[(number // 2 * len(queries) + head) % len(_DIRECTIONS)]
        if direction is not None:
            queries[head, : len(read), :-1] = factor * grid.turn(direction) @ read
            keys[head, : len(read), :-1] = factor * read
    values = fresh.values / fresh.values[..., :-1].norm(dim=-1).mean().clamp_min(1e-6)
    weights.set_heads(branch, replace(fresh, queries=queries, keys=keys, values=values))


class _MapFitting(FittingMode):
    """Draws hidden channels from pairs of tokens, and fits what writes the stream to a goal."""

    def __init__(
        self,
        target: nn.Module,
        weights: BranchWeights,
        bases: _Bases,
        goal: torch.Tensor,
        penalty: float,
        rng: torch.Generator,
    ) -> None:
        self._weights, self._rng, self.penalty = weights, rng, penalty
        parameters = dict(target.named_parameters())
        for key in weights.changed:
            parameters[key].copy_(weights.values[key])
        super().__init__(parameters, weights.network)
        self._basis = bases.content.to(goal)
        self._hidden: dict[int, Branch] = {}
        for branch in weights.network.branches:
            self.plan(branch, goal)
            if branch.attention is None and len(branch.readers) == 1:
                self._hidden[branch.readers[0].step.call] = branch

    def _before_product(self, call: int, inputs: torch.Tensor) -> None:
        if (branch := self._hidden.pop(call, None)) is not None:
            self._draw_hidden(branch, inputs, self._writers[branch.writer.step.call][1])
        super()._before_product(call, inputs)

    def _missing(self, branch: Branch, wanted: torch.Tensor) -> torch.Tensor | None:
        before = self._skips[branch.skip_call]
        if before is None or before.shape[:2] != wanted.shape[:2]:
            return None
        return ((wanted - before @ self._basis) @ self._basis.T).flatten(0, 1)

    def _fit(self, branch: Branch, inputs: torch.Tensor, missing: torch.Tensor) -> None:
        some = (
            torch.randperm(len(inputs), generator=self._rng)[:_ROWS].sort().values.to(inputs.device)
        )
        super()._fit(branch, inputs[some], missing[some])

    def _draw_hidden(self, branch: Branch, inputs: torch.Tensor, wanted: torch.Tensor) -> None:
        """Let each hidden channel rise from one token to another of which much unlike is wanted.

        Bolager and others, "Sampling weights of deep neural networks", NeurIPS 2023, section 3.
        """
        fresh, missing = self._weights.hidden(branch), self._missing(branch, wanted)
        if fresh is None or missing is None or len(missing) != len(inputs):
            return
        if fresh.reading.shape[1] != 1:
            return
        count = len(fresh.reading)
        inputs = self._by_image(branch.readers[0].step, inputs, wanted)
        pairs = torch.randint(len(inputs), (2, 6 * count), generator=self._rng)
        one, other = (inputs[side.to(inputs.device)].cpu() for side in pairs)
        change = missing[pairs[0].to(inputs.device)] - missing[pairs[1].to(inputs.device)]
        steps = one - other
        lengths = steps.square().sum(1).clamp_min(1.0)
        slopes = change.square().sum(1).cpu() / lengths
        chosen = torch.multinomial(slopes.clamp_min(1e-9), count, generator=self._rng)
        rows = _SLOPE * steps[chosen] / lengths[chosen, None]
        middle = (one[chosen] + other[chosen]) / 2
        order = torch.tensor(self._target.stream_places(branch.readers[0].step.inputs)).argsort()
        reading = torch.cat((rows[:, order], -(rows * middle).sum(1, keepdim=True)), 1)
        self._weights.set_hidden(branch, replace(fresh, reading=reading[:, None]))
        for part in branch.readers:
            for key in filter(None, (part.step.key, part.bias)):
                self._parameters[key].copy_(self._weights.values[key])
                self.changed.add(key)
