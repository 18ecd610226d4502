"""Seed streams, threads and devices: what is one for the whole process, in one place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

import torch


@contextmanager
def seeded(rng: torch.Generator) -> Iterator[None]:
    """Let code that draws from torch's global generator draw from `rng`; the global state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=rng)))
        yield


def random_stream(seed: int, *labels: object) -> torch.Generator:
    """Return a stream of random numbers of its own for each use, whatever else is drawn."""
    text = "/".join(map(str, (seed, *labels))).encode()
    return torch.Generator().manual_seed(int.from_bytes(sha256(text).digest()[:7], "big"))


def require_device(device: str) -> None:
    """Raise `UsageError` for a device that torch cannot use here."""
    import torch

    from sane_plugins.errors import UsageError

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).partition("\n")[0]
        raise UsageError(
            f"--device {device}",
            f"it cannot be used ({first})",
            "a device of this torch is needed",
            "leave the option out to train on the CPU",
        ) from error
