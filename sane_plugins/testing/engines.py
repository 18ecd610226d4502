"""The contract of engines: that of Python's own `map`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sane_plugins.testing.contract import ContractError, quiet

_ITEMS = 50


def check_engine(engine: Callable[[Callable[[int], Any], Iterable[int]], Iterable[Any]]) -> None:
    """Raise `ContractError` unless an engine answers as `map` does: each result, in order, errors raised.

    It may use other processes: the functions that it is given can be pickled.
    """
    with quiet("the engine"):
        results = list(engine(_square, range(_ITEMS)))
        if results != [_square(i) for i in range(_ITEMS)]:
            raise ContractError("it returns other results than map: each once, in order")
        if list(engine(_square, [])):
            raise ContractError("it returns results where there is nothing to do")
        try:
            list(engine(_fail_at_three, range(_ITEMS)))
        except LookupError:
            return
        except BaseException as error:
            raise ContractError(
                f"an error of the job reaches its caller as {type(error).__name__}: raise it as it is"
            ) from error
    raise ContractError("an error of the job is lost: raise it where results are read")


def _square(i: int) -> int:
    return i * i


def _fail_at_three(i: int) -> int:
    if i == 3:
        raise LookupError(i)
    return i
