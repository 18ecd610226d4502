"""Random streams, threads and devices: the state that the whole process shares.

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

_SINGLE_THREAD_MAX_FLOPS = 2e7


def random_stream(seed: int, *labels: object) -> torch.Generator:
    """Return a random generator of its own for a seed and labels, independent of all others."""
    import torch

    text = "/".join(map(str, (seed, *labels))).encode()
    return torch.Generator().manual_seed(int.from_bytes(sha256(text).digest()[:7], "big"))


@contextmanager
def seeded(rng: torch.Generator) -> Iterator[None]:
    """Seed torch's global generator from `rng` within the block; its state is restored afterwards."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=rng)))
        yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads within the block; the previous number is restored.

    The number applies to the whole process, and so does this change.
    """
    import torch

    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


@contextmanager
def threads_for(flops: int) -> Iterator[None]:
    """Use one thread for a network whose forward pass takes few operations: it is too small to split.

    On a busy machine the threads of a small step wait for each other longer than they work.
    """
    import torch

    with threads(1 if flops < _SINGLE_THREAD_MAX_FLOPS else torch.get_num_threads()):
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
