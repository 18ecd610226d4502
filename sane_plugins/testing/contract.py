"""What every check asks of a plugin: quiet, the same answer each time and in every thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from threading import Barrier
from typing import Any, TypeVar

T = TypeVar("T")
THREADS = 4


class ContractError(AssertionError):
    """A plugin breaks a promise that hosts rely on; the message says which, and what to do."""


@contextmanager
def quiet(what: str) -> Iterator[None]:
    """Raise `ContractError` for what is printed to standard output in the block."""
    heard = StringIO()
    with redirect_stdout(heard):
        yield
    if text := heard.getvalue().strip():
        line = text.splitlines()[0][:60]
        raise ContractError(
            f"{what} prints {line!r} to standard output, which holds a command's result:"
            " write it to stderr, or log it"
        )


def in_threads(call: Callable[[int], T]) -> list[T]:
    """Call a function in several threads at once, with the number of each; return what it answered."""
    start = Barrier(THREADS)

    def run(number: int) -> T:
        start.wait()
        return call(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


def is_same(one: Any, other: Any) -> bool:
    """Return whether two values are the same to the last bit, tensors and arrays by type and shape too."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return list(one) == list(other) and all(is_same(one[x], other[x]) for x in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    if hasattr(one, "detach") and hasattr(other, "detach"):
        return _tensor_bits(one) == _tensor_bits(other)
    if hasattr(one, "tobytes") and hasattr(other, "tobytes"):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    return type(one) is type(other) and bool(one == other)


def _tensor_bits(tensor: Any) -> tuple[Any, ...]:
    import torch

    plain = tensor.detach().cpu().contiguous()
    return plain.dtype, tuple(plain.shape), plain.flatten().view(torch.uint8).numpy().tobytes()


def require_same(one: Any, other: Any, what: str, way_out: str) -> None:
    """Raise `ContractError` unless two values are the same to the last bit; it names the first difference.

    `other` is what is needed.
    """
    if not is_same(one, other):
        raise ContractError(f"{what} ({first_difference(one, other)}): {way_out}")


def first_difference(one: Any, other: Any) -> str:
    """Return in words where two values that are not the same differ first; `other` is what is needed."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in other:
            if key not in one:
                return f"{key!r} is missing"
        for key in one:
            if key not in other:
                return f"{key!r} is too many"
        for key in other:
            if not is_same(one[key], other[key]):
                return f"{key!r}: {first_difference(one[key], other[key])}"
        return "the keys are in another order"
    if hasattr(one, "dtype") and hasattr(other, "dtype"):
        for what in ("dtype", "shape"):
            found, needed = getattr(one, what), getattr(other, what)
            if found != needed:
                return f"{_plain(found)} in place of {_plain(needed)}"
        return "other values"
    return f"{_plain(one)} in place of {_plain(other)}"


def _plain(value: Any) -> str:
    """Return a value as a message shows it: a dtype by its name, a shape as a tuple."""
    is_sequence = isinstance(value, tuple | list)
    return f"{tuple(value)}" if is_sequence else f"{value!r}".removeprefix("torch.")[:80]
