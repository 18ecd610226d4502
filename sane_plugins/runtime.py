"""Seed streams, threads and devices: what is one for the whole process, in one place.

Light at import: commands that ask for a device must show their help at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING

from sane_plugins.errors import UsageError

if TYPE_CHECKING:
    import torch

_SMALL_FLOPS = 2e7


def random_stream(seed: int, *labels: object) -> torch.Generator:
    """Return a stream of random numbers of its own for each use, whatever else is drawn."""
    import torch

    text = "/".join(map(str, (seed, *labels))).encode()
    return torch.Generator().manual_seed(int.from_bytes(sha256(text).digest()[:7], "big"))


@contextmanager
def seeded(rng: torch.Generator) -> Iterator[None]:
    """Let code that draws from torch's global generator draw from `rng`; the global state stays."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=rng)))
        yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads; the number before comes back.

    The number is one for the whole process, and so is this change of it.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def threads_for(flops: int) -> Iterator[None]:
    """Let a network whose forward pass takes few operations run on one thread: it is too small to share out.

    On a busy machine the threads of a small step wait for each other longer than they work.
    """
    import torch

    with threads(1 if flops < _SMALL_FLOPS else torch.get_num_threads()):
        yield


def require_device(device: str) -> None:
    """Raise `UsageError` for a device that torch cannot use here."""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device {device}",
            f"it cannot be used ({str(error).partition(chr(10))[0]})",
            "a device of this machine is needed",
            "leave it out to use the CPU",
        ) from error
