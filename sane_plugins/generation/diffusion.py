"""The sampler `diffusion`: prompts' latents, noised and cleaned by a denoiser that knows the task.

The start of the way back is a choice (after SDEdit, 2022): level 0 gives a prompt back, level 1 forgets it.
The method: docs/explanation/sane.md, section 8.3.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import as_file, files

import torch

from sane_plugins.errors import UsageError
from sane_plugins.generation.denoiser import Denoiser, denoised, load_denoiser, weights
from sane_plugins.generation.samplers import SamplingContext, turns


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """Latents of prompts, each equally often, noised to `level` and denoised in `steps` for a task."""

    level: float = 0.3
    steps: int = 20
    around: SamplingContext | None = field(default=None, repr=False, compare=False)

    def bound(self, around: SamplingContext) -> Diffusion:
        """Return the sampler for a network and a task. Raises `UsageError` for latents of another SANE."""
        known = embedded().config.sane
        if around.sane != known:
            raise UsageError(
                "sampler 'diffusion'",
                f"its latents are those of the SANE {known}",
                f"the SANE in use is {around.sane}",
                "use kde, or the shipped SANE",
            )
        return replace(self, around=around)

    def __call__(self, prompts: torch.Tensor, count: int, rng: torch.Generator) -> torch.Tensor:
        """Return new latents (count, T, L)."""
        if self.around is None or self.level == 0:
            return prompts[turns(len(prompts), count, rng)]
        keep, noise = weights(torch.tensor(self.level))
        drawn = torch.randn(count, *prompts.shape[1:], generator=rng).to(prompts)
        noisy = keep * prompts[turns(len(prompts), count, rng)] + noise * drawn
        found = [
            denoised(
                embedded(), x[None], self.around.places, self.around.task, self.level, self.steps
            )
            for x in noisy
        ]  # one after the other: a large network's latents fill the memory
        return torch.cat(found)


@lru_cache(maxsize=1)
def embedded() -> Denoiser:
    """Return the denoiser that ships with the package."""
    with as_file(files("sane_plugins") / "data" / "diffusion.safetensors") as path:
        return load_denoiser(path)
