"""Encoding run by run: tokens come from the network and latents leave, and memory does not grow with it.

A run is some consecutive windows. Runs are encoded beside each other, each on one thread: that needs no
barriers, on which small matrices wait longer than they take on a busy machine, and gives the same bits
whatever the number of threads. Legend: U tokens that a run sees.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from sane_plugins.autoencoder import windows
from sane_plugins.autoencoder.bfloat16 import Precision, can_read, dtype_of, fast_encoder
from sane_plugins.autoencoder.model import SANE
from sane_plugins.autoencoder.normalization import scaled_blocks
from sane_plugins.progress import Progress, current
from sane_plugins.runtime import threads
from sane_plugins.weights import TokenLayout, WeightGraph

_WINDOWS = 32  # of a run: their activations stay in a core's cache
_WINDOWS_GPU = 512


@dataclass(frozen=True)
class WindowBatch:
    """Latents (n, L) of consecutive tokens from `start` on, the slot of each (n,), and its side (n, 4)."""

    start: int
    latents: torch.Tensor
    slot: torch.Tensor
    side: torch.Tensor


@dataclass(frozen=True)
class _Cut:
    """What a run sees: values (U, D) and side (U, 4) of the tokens from `start` on."""

    first: int
    last: int
    start: int
    values: torch.Tensor
    side: torch.Tensor


def walk(
    model: SANE,
    graph: WeightGraph,
    take: Callable[[WindowBatch], None],
    window: int,
    halo: int,
    precision: Precision,
) -> None:
    """Encode a network and hand over its latents run by run, in order; each tensor is read once.

    Raises `SourceError` where a weight is not finite, when it is reached.
    """
    device = model.latents_out.weight.device
    layout = graph.token_layout(model.config.token_width).to(device)
    dtype = dtype_of(precision, device) if can_read(model) else torch.float32
    encoder = _Encoder(model, layout, window, halo, dtype)
    report = current()
    cuts = _cuts(graph, model, len(layout), window, halo)
    is_long = len(layout) > window * _WINDOWS
    for run in _mapped(encoder, cuts, device, is_long):
        take(run)
        done = run.start + len(run.latents)
        if is_long:
            report(Progress(job="encode", done=done, total=len(layout), note=graph.source))


def _cuts(graph: WeightGraph, model: SANE, tokens: int, window: int, halo: int) -> Iterator[_Cut]:
    """Yield what each run sees; neighbours share their halo."""
    device = model.latents_out.weight.device
    source = scaled_blocks(model, graph, device)
    values, side = (torch.empty(0, n, device=device) for n in (model.config.token_width, 4))
    total, step = windows.count(tokens, window), _WINDOWS if device.type == "cpu" else _WINDOWS_GPU
    start = 0
    for first in range(0, total, step):
        last = min(first + step, total)
        seen = windows.seen(tokens, window, halo, first, last)
        begin, end = int(seen[0, 0]), int(seen[-1, -1]) + 1
        new, have = [(values[begin - start :], side[begin - start :])], start + len(values)
        while have < end:
            block = next(source)
            new.append((block.values, block.side.expand(len(block.values), -1)))
            have += len(block.values)
        values, side = (torch.cat(parts) for parts in zip(*new, strict=True))
        start = begin
        yield _Cut(first, last, start, values[: end - start], side[: end - start])


@dataclass(frozen=True)
class _Encoder:
    """Encodes what a run sees into what it owns."""

    model: SANE
    layout: TokenLayout
    window: int
    halo: int
    dtype: torch.dtype

    @torch.no_grad()
    def __call__(self, cut: _Cut) -> WindowBatch:
        tokens, device = len(self.layout), cut.values.device
        seen = windows.seen(tokens, self.window, self.halo, cut.first, cut.last)
        owned = windows.owned(tokens, self.window, cut.first, cut.last)
        start, count = int(owned[0, 0]), int(owned[-1, -1]) + 1 - int(owned[0, 0])
        owned = (owned - seen[:, :1]).to(device)
        places = self.model.config.places(self.layout, cut.start, cut.start + len(cut.values))
        latents = self._latents(cut, places, (seen - cut.start).to(device), owned)
        return WindowBatch(
            start,
            latents.flatten(0, 1)[:count],
            self.layout.slot_numbers(start, start + count),
            cut.side[start - cut.start :][:count],
        )

    def _latents(
        self, cut: _Cut, places: torch.Tensor, seen: torch.Tensor, owned: torch.Tensor
    ) -> torch.Tensor:
        if self.dtype == torch.bfloat16:
            return fast_encoder(self.model)(cut.values, cut.side, places, seen, owned)
        latents = self.model.encode(cut.values[seen], cut.side[seen], places[seen])
        return latents.gather(1, owned[..., None].expand(-1, -1, latents.shape[-1]))


def _mapped(
    encoder: _Encoder, cuts: Iterator[_Cut], device: torch.device, is_long: bool
) -> Iterator[WindowBatch]:
    """Yield the runs in order, from as many threads as torch has here where the network is long."""
    if device.type != "cpu":
        yield from map(encoder, cuts)
        return
    beside = torch.get_num_threads()
    with threads(1):  # each operation runs on its caller's thread
        if is_long and beside > 1:
            yield from _beside(encoder, cuts, beside)
        else:
            yield from map(encoder, cuts)


def _beside(encoder: _Encoder, cuts: Iterator[_Cut], beside: int) -> Iterator[WindowBatch]:
    pending: deque[Future[WindowBatch]] = deque()
    with ThreadPoolExecutor(beside, "encode", torch.set_num_threads, (1,)) as pool:
        for cut in cuts:
            pending.append(pool.submit(encoder, cut))
            if len(pending) > 2 * beside:
                yield pending.popleft().result()
        yield from (future.result() for future in pending)
