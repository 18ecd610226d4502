"""The sampler `diffusion`: prompts' latents, noised and denoised by a model conditioned on the task.

The noise level to start from is a choice (after SDEdit, 2022): level 0 returns a prompt, level 1 forgets it.
The method: docs/explanation/sane.md, section 8.3.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import as_file, files

import torch

from sane_plugins.errors import UsageError
from sane_plugins.generation.denoiser import Denoiser, denoise, load_denoiser, signal_and_noise
from sane_plugins.generation.samplers import SamplingContext, balanced_prompt_indices


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """Latents of prompts, each equally often, noised to `level` and denoised in `steps` for a task."""

    level: float = 0.3
    steps: int = 20
    context: SamplingContext | None = field(default=None, repr=False, compare=False)

    def bound(self, context: SamplingContext) -> Diffusion:
        """Return the sampler for a network and a task. Raises `UsageError` for latents of another SANE."""
        known_sane = embedded_denoiser().config.sane
        if context.sane != known_sane:
            raise UsageError(
                "sampler 'diffusion'",
                f"its latents are those of the SANE {known_sane}",
                f"the SANE in use is {context.sane}",
                "use kde, or the shipped SANE",
            )
        return replace(self, context=context)

    def __call__(self, prompts: torch.Tensor, count: int, rng: torch.Generator) -> torch.Tensor:
        """Return new latents (count, T, L)."""
        if self.context is None or self.level == 0:
            return prompts[balanced_prompt_indices(len(prompts), count, rng)]
        signal_scale, noise_scale = signal_and_noise(torch.tensor(self.level, dtype=torch.float32))
        noise = torch.randn(count, *prompts.shape[1:], generator=rng, dtype=torch.float32).to(
            prompts
        )
        noisy = (
            signal_scale * prompts[balanced_prompt_indices(len(prompts), count, rng)]
            + noise_scale * noise
        )
        latents = [
            denoise(
                embedded_denoiser(),
                x[None].cpu(),  # where the shipped denoiser is, which all callers share
                self.context.places,
                self.context.task,
                self.level,
                self.steps,
            )
            for x in noisy
        ]  # one after the other: a large network's latents fill the memory
        return torch.cat(latents).to(prompts)


@lru_cache(maxsize=1)
def embedded_denoiser() -> Denoiser:
    """Return the denoiser that ships with the package."""
    with as_file(files("sane_plugins") / "data" / "diffusion.safetensors") as path:
        return load_denoiser(path)
