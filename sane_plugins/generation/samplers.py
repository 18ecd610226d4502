"""Samplers: new latents near those of a few prompt networks.

Two choices that the reference implementation makes by accident are explicit here: whether all tokens of
a new network come from one prompt, and whether all tokens share one draw of noise. The method:
docs/explanation/sane.md, sections 6.2 and 7.1; paper section 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch


class Sampler(Protocol):
    """Draws latents (count, T, L) near those of prompts (N, T, L), N >= 1."""

    def __call__(self, prompts: torch.Tensor, count: int, rng: torch.Generator) -> torch.Tensor:
        """Return new latents (count, T, L)."""
        ...


@dataclass(frozen=True)
class SamplingContext:
    """What a sampler may condition on: positions (T, P), a task's description (F,), a SANE's fingerprint."""

    places: torch.Tensor
    task: torch.Tensor
    sane: str


@runtime_checkable
class ConditionedSampler(Protocol):
    """A sampler that must be bound to a network's positions and a task before it draws."""

    def bound(self, context: SamplingContext) -> Sampler:
        """Return the sampler bound to this context."""
        ...


@dataclass(frozen=True, kw_only=True)
class KDE:
    """Gaussian kernel density around the prompts' latents, per token.

    `bandwidth` is relative to the standard deviation of each latent dimension over all tokens of all prompts:
    it means the same for any autoencoder and is defined for a single prompt too. `prompt="network"` takes
    all tokens of a draw from one prompt (a coherent network), each prompt equally often; `"token"` draws
    a prompt for every token, as the density of the paper does. `noise="shared"` gives all tokens of a
    draw the same noise, as the reference does.
    """

    bandwidth: float = 0.05
    prompt: Literal["network", "token"] = "network"
    noise: Literal["token", "shared"] = "token"

    def __call__(self, prompts: torch.Tensor, count: int, rng: torch.Generator) -> torch.Tensor:
        """Return new latents (count, T, L)."""
        networks, tokens, width = prompts.shape
        if self.prompt == "network":
            centre = prompts[balanced_prompt_indices(networks, count, rng)]
        else:
            prompt_index = torch.randint(networks, (count, tokens), generator=rng)
            centre = prompts[prompt_index, torch.arange(tokens)]
        noise_tokens = 1 if self.noise == "shared" else tokens
        noise = torch.randn(count, noise_tokens, width, generator=rng).to(prompts)
        return centre + self.bandwidth * _latent_std(prompts) * noise


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """One normal distribution per token and dimension, fitted to the prompts; one prompt returns itself."""

    spread: float = 1.0

    def __call__(self, prompts: torch.Tensor, count: int, rng: torch.Generator) -> torch.Tensor:
        """Return new latents (count, T, L)."""
        noise = torch.randn(count, *prompts.shape[1:], generator=rng).to(prompts)
        return prompts.mean(0) + self.spread * prompts.std(0, correction=0) * noise


def balanced_prompt_indices(networks: int, count: int, rng: torch.Generator) -> torch.Tensor:
    """Return `count` prompt indices in random order; how often each occurs differs by at most one."""
    permutations = [torch.randperm(networks, generator=rng) for _ in range(-(-count // networks))]
    return torch.cat(permutations)[:count]


def _latent_std(prompts: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation (L,) of each latent dimension over all tokens of all prompts."""
    return prompts.flatten(0, 1).std(0, correction=0)
