"""Encode a network's halo windows in batches: tokens stream in, latents out, in memory that does not grow.

A batch consists of consecutive windows. Batches are encoded in parallel, each on one thread: that avoids
barriers, which cost small matrix products more than the products themselves on a busy machine, and gives
bit-identical results for any number of threads. U is the number of tokens seen by the windows of a batch.
The method: docs/explanation/sane.md, section 5.2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from sane_plugins.autoencoder import halo_windows
from sane_plugins.autoencoder.bfloat16 import (
    Precision,
    bfloat16_encoder,
    precision_dtype,
    supports_bfloat16,
)
from sane_plugins.autoencoder.model import SANE
from sane_plugins.autoencoder.normalization import standardized_blocks
from sane_plugins.display import ShortRepr
from sane_plugins.errors import SourceError
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.runtime import set_threads, threads
from sane_plugins.weights import TokenLayout, WeightGraph

_BATCH = 32  # windows, whose activations fit into a core's cache
_GPU_BATCH = 512


@dataclass(frozen=True, eq=False, repr=False)
class WindowBatch(ShortRepr):
    """Latents (n, L) of consecutive tokens from `start` on, the slot of each (n,), and its side (n, 4)."""

    start: int
    latents: torch.Tensor
    slot: torch.Tensor
    side: torch.Tensor


@dataclass(frozen=True)
class _BatchInput:
    """Input of windows `first` to `last`: values (U, D) and side (U, 4) of tokens from `start` on."""

    first: int
    last: int
    start: int
    values: torch.Tensor
    side: torch.Tensor


def encode_stream(
    model: SANE,
    graph: WeightGraph,
    take: Callable[[WindowBatch], None],
    *,
    window: int | None = None,
    halo: int | None = None,
    precision: Precision = "float32",
    report: Report = silent,
) -> None:
    """Encode a network and hand its latents to `take` batch by batch, in order; each tensor is read once.

    Raises `SourceError` when it reaches a weight that is not finite.
    """
    window, halo = model.config.window_and_halo(window, halo)
    device = model.latents_out.weight.device
    layout = graph.token_layout(model.config.token_width).to(device)
    dtype = precision_dtype(precision, device) if supports_bfloat16(model) else torch.float32
    encoder = _Encoder(model, layout, window, halo, dtype)
    inputs = _read_inputs(graph, model, len(layout), window, halo)
    is_long = len(layout) > window * _BATCH
    for batch in _encode_all(encoder, inputs, device, is_long):
        take(batch)
        done = batch.start + len(batch.latents)
        if is_long:
            report(Progress(job="encode", done=done, total=len(layout), note=graph.source))


def require_finite_result(graph: WeightGraph, result: torch.Tensor) -> torch.Tensor:
    """Return what was computed from a network; raise `SourceError` where it is not finite."""
    if not bool(result.isfinite().all()):
        graph.require_finite()
        raise SourceError(
            graph.source,
            "what this SANE computes from it is not finite",
            "an embedding needs weights and a SANE of moderate size",
            "check the weights' size with 'sane-plugins inspect', or use the shipped SANE",
        )
    return result


def _read_inputs(
    graph: WeightGraph, model: SANE, tokens: int, window: int, halo: int
) -> Iterator[_BatchInput]:
    """Yield the input of each batch of windows; neighbouring batches overlap by their halos."""
    device = model.latents_out.weight.device
    source = standardized_blocks(model, graph, device)
    values, side = (
        torch.empty(0, n, device=device, dtype=torch.float32) for n in (model.config.token_width, 4)
    )
    total = halo_windows.count_windows(tokens, window)
    step = _BATCH if device.type == "cpu" else _GPU_BATCH
    start = 0
    for first in range(0, total, step):
        last = min(first + step, total)
        visible = halo_windows.visible_tokens(tokens, window, halo, first, last)
        begin, end = int(visible[0, 0]), int(visible[-1, -1]) + 1
        new, available = [(values[begin - start :], side[begin - start :])], start + len(values)
        while available < end:
            block = next(source)
            new.append((block.values, block.side.expand(len(block.values), -1)))
            available += len(block.values)
        values, side = (torch.cat(parts) for parts in zip(*new, strict=True))
        start = begin
        yield _BatchInput(first, last, start, values[: end - start], side[: end - start])


@dataclass(frozen=True)
class _Encoder:
    """Encodes the input of a batch of windows to the latents of the tokens they own."""

    model: SANE
    layout: TokenLayout
    window: int
    halo: int
    dtype: torch.dtype

    @torch.no_grad()
    def __call__(self, inputs: _BatchInput) -> WindowBatch:
        tokens, device = len(self.layout), inputs.values.device
        visible = halo_windows.visible_tokens(
            tokens, self.window, self.halo, inputs.first, inputs.last
        )
        owned = halo_windows.owned_tokens(tokens, self.window, inputs.first, inputs.last)
        start, count = int(owned[0, 0]), int(owned[-1, -1]) + 1 - int(owned[0, 0])
        owned = (owned - visible[:, :1]).to(device)
        positions = self.model.config.positions(
            self.layout, inputs.start, inputs.start + len(inputs.values)
        )
        latents = self._latents(inputs, positions, (visible - inputs.start).to(device), owned)
        return WindowBatch(
            start,
            latents.flatten(0, 1)[:count],
            self.layout.slot_numbers(start, start + count),
            inputs.side[start - inputs.start :][:count],
        )

    def _latents(
        self,
        inputs: _BatchInput,
        positions: torch.Tensor,
        visible: torch.Tensor,
        owned: torch.Tensor,
    ) -> torch.Tensor:
        if self.dtype == torch.bfloat16:
            return bfloat16_encoder(self.model)(
                inputs.values, inputs.side, positions, visible, owned
            )
        latents = self.model.encode(
            inputs.values[visible], inputs.side[visible], positions[visible]
        )
        return latents.gather(1, owned[..., None].expand(-1, -1, latents.shape[-1]))


def _encode_all(
    encoder: _Encoder, inputs: Iterator[_BatchInput], device: torch.device, is_long: bool
) -> Iterator[WindowBatch]:
    """Yield the encoded batches in order; long networks use as many threads as torch does."""
    if device.type != "cpu":
        yield from map(encoder, inputs)
        return
    workers = torch.get_num_threads()
    with threads(1):  # run each operation on its caller's thread
        if is_long and workers > 1:
            yield from _encode_parallel(encoder, inputs, workers)
        else:
            yield from map(encoder, inputs)


def _encode_parallel(
    encoder: _Encoder, inputs: Iterator[_BatchInput], workers: int
) -> Iterator[WindowBatch]:
    pending: deque[Future[WindowBatch]] = deque()
    with ThreadPoolExecutor(workers, "encode", set_threads, (1,)) as pool:
        for each in inputs:
            pending.append(pool.submit(encoder, each))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        yield from (future.result() for future in pending)
