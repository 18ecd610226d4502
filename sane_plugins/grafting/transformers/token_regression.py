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

from sane_plugins.grafting.transformers.branch_pairs import meeting_places
from sane_plugins.grafting.transformers.steps import SumStep
from sane_plugins.grafting.transformers.stream_maps import StreamMap
from sane_plugins.grafting.transformers.structure import Branch, TokenNetwork
from sane_plugins.grafting.transformers.traced_run import plain_operators
from sane_plugins.grafting.transformers.transformer_graft import TransformerGraft
from sane_plugins.weights import evaluation_copy

_PENALTY = 0.1  # relative to the mean diagonal of the inputs' products
_KEPT_VALUES, _FLOPS, _LEAST_IMAGES = 2**27, 2**40, 16
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
    in the mean over branches.
    """
    ends = meeting_places(graft.pairs, len(graft.source.branches))
    pairs = [(graft.target.branches[i], graft.source.branches[end]) for i, end in ends.items()]
    each = sum(len(of.sum.cells) * graft.source.width for _, of in pairs)
    flops = graft.source.image_flops + graft.target.image_flops
    count = max(_LEAST_IMAGES, min(_KEPT_VALUES // max(each, 1), _FLOPS // flops))
    source_images, target_images = source_images[:count], target_images[:count]
    calls = {of.sum.call for _, of in pairs}
    watch = _Watch(calls)
    copied = evaluation_copy(source)
    with plain_operators(), watch:
        copied(source_images)
    parameters = dict(target.named_parameters())
    fit = _FittingMode(parameters, graft.target)
    for to, of in pairs:
        if (wanted := _as_ours(watch.values.get(of.sum.call), of.sum, to.sum, graft.stream)) is not None:
            fit.plan(to, wanted)
    modes = {part: part.training for part in target.modules()}
    target.eval()
    try:
        with plain_operators(), fit:
            target(target_images)
    finally:
        for part, mode in modes.items():
            part.training = mode
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


class _FittingMode(TorchDispatchMode):
    """Fits each planned writer at the moment that it acts."""

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
        if call in self._writers and func in _LINEAR:
            self._fit(*self._writers.pop(call), args[_LINEAR[func][1]])
        result = func(*args, **(kwargs or {}))
        if call in self._skips:  # of a norm's results the first is the value
            self._skips[call] = result[0] if isinstance(result, tuple) else result
        return result

    def _fit(self, branch: Branch, wanted: torch.Tensor, inputs: torch.Tensor) -> None:
        """Fit a writer to what is missing from the stream; nothing where tokens are not alike."""
        before, step = self._skips[branch.skip_call], branch.writer.step
        places = torch.tensor(self._target.stream_places(step.outputs))
        weight = self._parameters[step.key]
        plain = weight.dim() == 2 and len(step.rows) == len(weight) and step.row_axis == 0
        if before is None or not plain or wanted.shape != before.shape:
            return
        if len(inputs) != before[..., 0].numel():
            return
        if step.is_token_major:
            inputs = inputs.unflatten(0, (-1, len(before))).transpose(0, 1).flatten(0, 1)
        y = (wanted - before).flatten(0, 1)[:, places]
        scale = branch.layer_scale and self._parameters[branch.layer_scale].flatten()[places]
        if scale is not None:
            y = y / scale
        mean, target_mean = inputs.mean(0), y.mean(0)
        x, y = inputs - mean, y - target_mean
        left = y - x @ weight.T
        gram = x.T @ x
        gram.diagonal().add_(_PENALTY * gram.diagonal().mean() + 1e-9)
        change = torch.cholesky_solve(x.T @ left, torch.linalg.cholesky(gram))
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
