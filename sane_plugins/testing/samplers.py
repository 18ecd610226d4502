"""The contract of samplers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sane_plugins.testing.contract import (
    THREADS,
    ContractError,
    in_threads,
    is_same,
    quiet,
    require_same,
)
from sane_plugins.testing.example_networks import example_latents

if TYPE_CHECKING:
    from sane_plugins.generation import SamplingContext

_SEEDED = "draw from the generator that is given, and from nothing else"


def check_sampler(sampler: Any, context: SamplingContext | None = None) -> None:
    """Raise `ContractError` unless a sampler keeps its contract; what it raises itself is raised.

    It draws finite latents (count, T, L) for one prompt and for several, the same bytes for the same seed and
    others for others, alone and in threads, changes neither the prompts nor torch's global generator,
    and prints nothing. `context` binds a conditioned sampler.
    """
    import torch

    from sane_plugins.generation import bind_sampler, draw
    from sane_plugins.runtime import random_stream

    if callable(getattr(sampler, "bound", None)):
        if context is None:
            raise ContractError("the sampler is conditioned: give check_sampler a context")
        sampler = bind_sampler(sampler, context)
    prompts = example_latents().clone()
    with quiet("the sampler"):
        for given, count in ((prompts, 4), (prompts[:1], 2), (prompts, 1)):
            before, state = given.clone(), torch.default_generator.get_state()
            first = draw(sampler, given, count, random_stream(0))
            again = draw(sampler, given, count, random_stream(0))
            require_same(first, again, "the same seed draws other latents", _SEEDED)
            require_same(given, before, "the sampler changes its prompts", "compute with a copy")
            now = torch.default_generator.get_state()
            require_same(now, state, "the sampler draws from torch's global generator", _SEEDED)
        alone = [draw(sampler, prompts, 2, random_stream(i)) for i in range(THREADS)]
        beside = in_threads(lambda i: draw(sampler, prompts, 2, random_stream(i)))
    require_same(alone, beside, "it draws other latents beside other threads", "keep no state")
    if all(is_same(alone[0], other) for other in alone):
        raise ContractError(f"every seed draws the same latents: {_SEEDED}")
