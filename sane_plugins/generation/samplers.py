"""Samplers: new latents near those of a few prompt networks.

Two choices that the reference implementation makes by accident are explicit here: whether all tokens of
a new network come from one prompt, and whether all tokens share one draw of noise. The method:
docs/explanation/sane.md, sections 6.2 and 7.1; paper section 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import FunctionType
from typing import Literal, Protocol, runtime_checkable

import torch

from sane_plugins.errors import PluginError, SaneError


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


class SamplerError(PluginError):
    """A sampler failed, or drew what are no latents."""


def bind_sampler(sampler: Sampler, context: SamplingContext) -> Sampler:
    """Return the sampler, bound to a network and a task if it is conditioned.

    Where binding fails, drawing raises `SamplerError`, so that an initialisation can go on without it.
    """
    if not isinstance(sampler, ConditionedSampler):
        return sampler
    try:
        return sampler.bound(context)
    except (KeyboardInterrupt, SaneError):
        raise
    except BaseException as error:
        return _UnboundSampler(sampler, error)


def draw(sampler: Sampler, prompts: torch.Tensor, count: int, rng: torch.Generator) -> torch.Tensor:
    """Draw latents (count, T, L). Raises `SamplerError` where the sampler fails, or draws something else."""
    try:
        latents = sampler(prompts, count, rng)
        wrong = _describe_wrong_latents(latents, prompts, count)
    except (KeyboardInterrupt, SaneError):
        raise
    except BaseException as error:  # of a plugin, which may even exit
        raise _sampler_error(sampler, f"it raised {type(error).__name__}") from error
    if wrong:
        raise _sampler_error(sampler, wrong)
    return latents.detach()


def sampler_name(sampler: Sampler) -> str:
    """Return a sampler's own text, the same in every process: without the address of an object."""
    is_plain = type(sampler).__repr__ in (object.__repr__, FunctionType.__repr__)
    name: str = getattr(sampler, "__qualname__", type(sampler).__qualname__)
    return name if is_plain else repr(sampler)


@dataclass(frozen=True)
class _UnboundSampler:
    """A conditioned sampler that could not be bound."""

    sampler: Sampler
    error: BaseException

    def __call__(self, prompts: torch.Tensor, count: int, rng: torch.Generator) -> torch.Tensor:  # noqa: ARG002
        raise _sampler_error(
            self.sampler, f"it raised {type(self.error).__name__} when bound"
        ) from self.error


def _describe_wrong_latents(latents: object, prompts: torch.Tensor, count: int) -> str:
    """Return what is wrong with latents for a network like the prompts (N, T, L), empty if nothing is."""
    needed = (count, *prompts.shape[1:])
    if not isinstance(latents, torch.Tensor):
        return f"it returned a {type(latents).__name__}"
    if tuple(latents.shape) != needed:
        return f"it returned latents of shape {tuple(latents.shape)}, and not {needed}"
    if (latents.dtype, latents.device) != (prompts.dtype, prompts.device):
        return f"it returned {latents.dtype} on {latents.device}"
    if not bool(torch.isfinite(latents).all()):
        return "it returned latents that are not finite"
    return ""


def _sampler_error(sampler: Sampler, found: str) -> SamplerError:
    return SamplerError(
        f"sampler {sampler_name(sampler)[:100]}",
        found,
        "finite latents (count, T, L) are needed, of the prompts' type and on their device",
        "repair it, or choose another, such as kde",
    )


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
        noise = torch.randn(count, noise_tokens, width, generator=rng, dtype=torch.float32).to(
            prompts
        )
        return centre + self.bandwidth * _latent_std(prompts) * noise


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """One normal distribution per token and dimension, fitted to the prompts; one prompt returns itself."""

    spread: float = 1.0

    def __call__(self, prompts: torch.Tensor, count: int, rng: torch.Generator) -> torch.Tensor:
        """Return new latents (count, T, L)."""
        noise = torch.randn(count, *prompts.shape[1:], generator=rng, dtype=torch.float32).to(
            prompts
        )
        return prompts.mean(0) + self.spread * prompts.std(0, correction=0) * noise


def balanced_prompt_indices(networks: int, count: int, rng: torch.Generator) -> torch.Tensor:
    """Return `count` prompt indices in random order; how often each occurs differs by at most one."""
    permutations = [torch.randperm(networks, generator=rng) for _ in range(-(-count // networks))]
    return torch.cat(permutations)[:count]


def _latent_std(prompts: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation (L,) of each latent dimension over all tokens of all prompts."""
    return prompts.flatten(0, 1).std(0, correction=0)
