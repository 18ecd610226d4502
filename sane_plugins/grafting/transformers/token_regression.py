"""Fit what writes the stream, branch by branch, to the stream of the transformer that was grafted.

What is fitted is the source's stream less the target's before the branch, so errors of earlier branches
are taken back. The method: docs/explanation/sane.md, section 11.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sane_plugins.grafting.execution import in_evaluation
from sane_plugins.grafting.fitting import ridge_steps
from sane_plugins.grafting.transformers.branch_graft import meeting_places
from sane_plugins.grafting.transformers.stream_maps import StreamMap
from sane_plugins.grafting.transformers.structure import Branch, TokenNetwork
from sane_plugins.grafting.transformers.tracing import ContractionStep, SumStep, plain_operators
from sane_plugins.grafting.transformers.transformer_graft import TransformerGraft
from sane_plugins.weights import evaluation_copy

_KEPT_VALUES, _FLOPS, _LEAST_IMAGES = 2**27, 2**40, 32
_LINEAR = {torch.ops.aten.addmm.default: (0, 1, 2), torch.ops.aten.mm.default: (None, 0, 1)}


@torch.no_grad()
def fit_writers(
    target: nn.Module,
    source: nn.Module,
    graft: TransformerGraft,
    target_images: torch.Tensor,
    source_images: torch.Tensor,
) -> tuple[frozenset[str], float]:
    """Fit the writers of a grafted target, in place; return their parameters, and the share explained.

    The images (N, C, H, W) are the same ones, each as the network takes them; as many are run at once as
    keep within 2^27 numbers and 2^40 operations. The share is of the variance of what is added to the stream,
    in the mean over branches. Nothing is fitted where networks have the same sizes, as what was grafted is
    whole, and where so few images can be run that fits would tell more of them than of the source.
    """
    ends = meeting_places(graft.pairs, len(graft.source.branches))
    pairs = [(graft.target.branches[i], graft.source.branches[end]) for i, end in ends.items()]
    each = sum(len(of.sum.cells) * graft.source.width for _, of in pairs)
    flops = graft.source.image_flops + graft.target.image_flops
    count = min(_KEPT_VALUES // max(each, 1), _FLOPS // flops)
    if graft.similarity == 1.0 or count < _LEAST_IMAGES:
        return frozenset(), 1.0
    source_images, target_images = source_images[:count], target_images[:count]
    calls = {of.sum.call for _, of in pairs}
    watch = _Watch(calls)
    copied = evaluation_copy(source)
    with plain_operators(), watch:
        copied(source_images)
    parameters = dict(target.named_parameters())
    fit = FittingMode(parameters, graft.target)
    for to, of in pairs:
        wanted = _as_ours(watch.values.get(of.sum.call), of.sum, to.sum, graft.stream)
        if wanted is not None:
            fit.plan(to, wanted)
    with in_evaluation(target), plain_operators(), fit:
        target(target_images)
    shares = fit.explained
    return frozenset(fit.changed), sum(shares) / len(shares) if shares else 1.0


class _Watch(TorchDispatchMode):
    """Keeps the results of some operators, by their number."""

    def __init__(self, calls: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls, self._call = calls, -1
        self.values: dict[int, torch.Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._call += 1
        call = self._call
        result = func(*args, **(kwargs or {}))
        if call in self._calls:
            self.values[call] = result
        return result


class FittingMode(TorchDispatchMode):
    """Fits each planned writer at the moment that it acts; `changed` are parameters, `explained` shares."""

    penalty = 0.1  # relative to the mean diagonal of the inputs' products

    def __init__(self, parameters: Mapping[str, nn.Parameter], target: TokenNetwork) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parameters, self._target, self._call = parameters, target, -1
        self._writers: dict[int, tuple[Branch, torch.Tensor]] = {}
        self._skips: dict[int, torch.Tensor | None] = {}
        self.changed: set[str] = set()
        self.explained: list[float] = []

    def plan(self, branch: Branch, wanted: torch.Tensor) -> None:
        """Fit the writer of a branch to the stream (N, T, D) that its sum is to make."""
        self._writers[branch.writer.step.call] = (branch, wanted)
        self._skips[branch.skip_call] = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._call += 1
        call = self._call
        if func in _LINEAR:
            self._before_product(call, args[_LINEAR[func][1]])
        result = func(*args, **(kwargs or {}))
        if call in self._skips:  # of a norm's results the first is the value
            self._skips[call] = result[0] if isinstance(result, tuple) else result
        return result

    def _before_product(self, call: int, inputs: torch.Tensor) -> None:
        """Do what is planned before a matrix multiplies inputs (rows, columns)."""
        if call in self._writers:
            branch, wanted = self._writers.pop(call)
            missing = self._missing(branch, wanted)
            if missing is not None and len(inputs) == len(missing):
                self._fit(branch, self._by_image(branch.writer.step, inputs, wanted), missing)

    def _missing(self, branch: Branch, wanted: torch.Tensor) -> torch.Tensor | None:
        """Return what the stream lacks before a branch (tokens, D), by image; None where that is unlike."""
        before = self._skips[branch.skip_call]
        if before is None or wanted.shape != before.shape:
            return None
        return (wanted - before).flatten(0, 1)

    def _by_image(
        self, step: ContractionStep, inputs: torch.Tensor, wanted: torch.Tensor
    ) -> torch.Tensor:
        if not step.is_token_major:
            return inputs
        by_token: torch.Tensor = inputs.unflatten(0, (-1, len(wanted)))
        return by_token.transpose(0, 1).flatten(0, 1)

    def _fit(self, branch: Branch, inputs: torch.Tensor, missing: torch.Tensor) -> None:
        """Fit a writer of which all rows write the stream to what is missing from it."""
        step = branch.writer.step
        places = torch.tensor(self._target.stream_places(step.outputs))
        weight = self._parameters[step.key]
        if weight.dim() != 2 or len(step.rows) != len(weight) or step.row_axis != 0:
            return
        y = missing[:, places]
        if branch.layer_scale:
            y = y / self._parameters[branch.layer_scale].flatten()[places]
        mean, target_mean = inputs.mean(0), y.mean(0)
        x, y = inputs - mean, y - target_mean
        left = y - x @ weight.T
        change = next(ridge_steps(x[None], left[None], [self.penalty]))[0]
        rest = left - x @ change
        self.explained.append(1 - float(rest.square().sum() / y.square().sum().clamp_min(1e-12)))
        weight.add_(change.T)
        self.changed.add(step.key)
        if branch.writer.bias is not None:
            self._parameters[branch.writer.bias].copy_(target_mean - weight @ mean)
            self.changed.add(branch.writer.bias)


def _as_ours(
    values: torch.Tensor | None, of: SumStep, to: SumStep, stream: StreamMap
) -> torch.Tensor | None:
    """Return the source's tokens (N, T, D) as the target's would be, in its stream; None on other grids.

    On other grids tokens see other parts of the image, and fits to resized ones did not help.
    """
    if values is None or values.dim() != 3:
        return None
    sizes = [(x.grid, int((x.cells >= 0).sum())) for x in (of, to)]
    if sizes[0] != sizes[1] or len(of.cells) != values.shape[1]:
        return None
    extras, ours = (x.cells.lt(0).nonzero().flatten() for x in (of, to))
    if len(extras) < len(ours):
        return None
    values = values if stream.is_identity else values @ stream.write.to(values).T
    made = values.new_zeros(len(values), len(to.cells), values.shape[2])
    made[:, to.cells.argsort()[len(ours) :]] = values[:, of.cells.argsort()[len(extras) :]]
    made[:, ours] = values[:, extras[: len(ours)]]
    return made
