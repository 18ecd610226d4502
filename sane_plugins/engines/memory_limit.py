"""How much memory a worker may take: its share of what the machine, or the container, has."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

_CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_REFUSALS = ("DefaultCPUAllocator", "can't allocate memory", "bad_alloc", "CUDA out of memory")
_LEAST = 2**30  # what a worker needs before it reads anything, with room


def share_of_memory(workers: int) -> int | None:
    """Return the bytes that each of some workers may take; None where that cannot be told."""
    amounts = []
    with suppress(AttributeError, OSError, ValueError):
        amounts.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in _CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # "max" is no number
            amounts.append(int(Path(name).read_text()))
    return max(min(amounts) // workers, _LEAST) if amounts else None


def limit_memory(limit: int | None) -> None:
    """Let this process fail to allocate beyond a limit, rather than the machine run out of memory."""
    if resource is None or limit is None:
        return
    kind = resource.RLIMIT_DATA  # not the address space, of which a GPU's driver reserves far more
    hard = resource.getrlimit(kind)[1]
    with suppress(OSError, ValueError):
        resource.setrlimit(
            kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error goes back to memory that was refused: readers tell it as a broken file."""
    return any(map(_is_refusal, _chain(error)))


def _is_refusal(error: BaseException) -> bool:
    is_refused = isinstance(error, OSError) and error.errno == errno.ENOMEM
    told = isinstance(error, RuntimeError) and any(text in str(error) for text in _REFUSALS)
    return isinstance(error, MemoryError) or is_refused or told


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
