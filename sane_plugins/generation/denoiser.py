"""Latent diffusion: a small denoiser of a network's latents, conditioned on a task (after D2NWG, 2024).

Legend: B networks, T tokens, L latent width, P place features, F numbers that describe a task.
The method: docs/explanation/sane.md, section 8.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sane_plugins.arguments import require_field_types, require_ranges
from sane_plugins.display import ShortRepr
from sane_plugins.formats import DENOISER, fill_module, load_artifact, read_config, save_artifact
from sane_plugins.runtime import seeded

_RANGES: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("latent", "places", "task", "width"), (1, 2**16)),
    "blocks": (0, 2**8),
}


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """Sizes of a denoiser, and the fingerprint of the SANE whose latents it knows."""

    latent: int
    places: int
    task: int
    sane: str
    width: int = 96
    blocks: int = 3

    def __post_init__(self) -> None:
        require_field_types(self)
        require_ranges(self, _RANGES)


@dataclass(frozen=True, eq=False, repr=False)
class DenoiserExample(ShortRepr):
    """Latents (T, L) of a network, its places (T, P), and the description (F,) of its task."""

    latents: torch.Tensor
    places: torch.Tensor
    task: torch.Tensor


class Denoiser(nn.Module):
    """Predict clean latents (B, T, L) from noisy ones; tokens see each other through their mean."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.read = nn.Linear(config.latent, width)
        self.place = nn.Linear(config.places, width)
        self.time = nn.Linear(16, width)
        self.task = nn.Linear(config.task, width)
        self.blocks = nn.ModuleList(_residual_block(width) for _ in range(config.blocks))
        self.write = nn.Linear(width, config.latent)

    def forward(
        self, noisy: torch.Tensor, places: torch.Tensor, level: torch.Tensor, task: torch.Tensor
    ) -> torch.Tensor:
        """Predict clean latents from noisy ones at levels (B,) in 0 to 1; a task (B, F) of zeros is none."""
        phases = level[:, None] * 2.0 ** torch.arange(8, device=level.device) * math.pi / 2
        conditioning = self.time(torch.cat([phases.sin(), phases.cos()], 1)) + self.task(task)
        x = self.read(noisy) + self.place(places) + conditioning[:, None]
        for block in self.blocks:
            x = x + block(torch.cat([x, x.mean(1, keepdim=True).expand_as(x)], -1))
        signal_scale, noise_scale = (part[:, None, None] for part in signal_and_noise(level))
        velocity = self.write(x)
        clean_estimate: torch.Tensor = signal_scale * noisy - noise_scale * velocity
        return clean_estimate


def _residual_block(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, width)
    )


def signal_and_noise(level: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scales of signal and noise at levels from 0 to 1 (cosine schedule)."""
    return (level * math.pi / 2).cos(), (level * math.pi / 2).sin()


def fit_denoiser(
    groups: Sequence[Sequence[DenoiserExample]],
    config: DenoiserConfig,
    steps: int,
    rng: torch.Generator,
    batch: int = 8,
    lr: float = 2e-3,
    blind: float = 0.15,
) -> Iterator[tuple[Denoiser, float]]:
    """Train a denoiser; yield it with its loss after each step. Networks of a group have equally many tokens.

    Batches come from each group in turn; a fraction `blind` of the examples is shown without its task.
    """
    with seeded(rng):
        model = Denoiser(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for step in range(steps):
        group = groups[step % len(groups)]
        examples = [group[i] for i in torch.randint(len(group), (batch,), generator=rng).tolist()]
        clean = torch.stack([x.latents for x in examples])
        task = torch.stack([x.task for x in examples])
        task = task * (torch.rand(batch, 1, generator=rng, dtype=torch.float32) > blind)
        level = torch.rand(batch, generator=rng, dtype=torch.float32)
        signal_scale, noise_scale = (part[:, None, None] for part in signal_and_noise(level))
        noisy = signal_scale * clean + noise_scale * torch.randn(
            clean.shape, generator=rng, dtype=torch.float32
        )
        clean_estimate = model(noisy, examples[0].places, level, task)
        # The error of v is that of the clean latents over the noise's share.
        loss = ((clean_estimate - clean) / noise_scale.clamp_min(0.05)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        yield model, float(loss.detach())


@torch.no_grad()
def denoise(
    model: Callable[..., torch.Tensor],
    noisy: torch.Tensor,
    places: torch.Tensor,
    task: torch.Tensor,
    start: float,
    steps: int,
) -> torch.Tensor:
    """Denoise latents (B, T, L) from level `start` to 0, in deterministic steps (DDIM)."""
    levels = torch.linspace(start, 0, steps + 1, device=noisy.device, dtype=torch.float32)
    for level, next_level in pairwise(levels):
        signal_scale, noise_scale = signal_and_noise(level)
        clean = model(noisy, places, level.expand(len(noisy)), task.expand(len(noisy), -1))
        direction = (noisy - signal_scale * clean) / noise_scale
        signal_scale, noise_scale = signal_and_noise(next_level)
        noisy = signal_scale * clean + noise_scale * direction
    return noisy


def save_denoiser(model: Denoiser, path: str | Path) -> Path:
    """Write a denoiser as float16 with its configuration; the inverse of `load_denoiser` up to that."""
    tensors = {key: value.half() for key, value in model.state_dict().items()}
    metadata = {"version": DENOISER.version, "config": asdict(model.config)}
    return save_artifact(DENOISER, metadata, tensors, path)


def load_denoiser(path: str | Path) -> Denoiser:
    """Read a denoiser. Raises `ZooError` for any other file, or another version."""
    return load_artifact(DENOISER, path, _build_denoiser)


def _build_denoiser(metadata: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Denoiser:
    config = read_config(DenoiserConfig, metadata["config"])
    with torch.device("meta"):
        model = Denoiser(config)
    return fill_module(model, tensors)
