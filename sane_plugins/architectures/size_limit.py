"""A limit on what a network takes while it is built: it is counted before memory is taken for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from sane_plugins.errors import SourceError

_CONSTRUCTORS = frozenset(
    (
        torch.empty,
        torch.zeros,
        torch.ones,
        torch.full,
        torch.rand,
        torch.randn,
        torch.eye,
        torch.arange,
        torch.linspace,
    )
)


@dataclass(frozen=True)
class Size:
    """How many values and tensors a network has at most."""

    values: int
    tensors: int


class SizeLimit(TorchFunctionMode):
    """A context in which this thread makes new tensors up to a limit; beyond it, `SourceError` is raised.

    `name` is what the error is about.
    """

    def __init__(self, name: str, most: Size) -> None:
        super().__init__()
        self._name, self._most = name, most
        self._tensors = self._values = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Count what a constructor is about to make, then call it."""
        kwargs = dict(kwargs or {})
        if func in _CONSTRUCTORS:
            self._count(func(*args, **{**kwargs, "device": "meta", "out": None}).numel())
        return func(*args, **kwargs)

    def _count(self, values: int) -> None:
        self._tensors, self._values = self._tensors + 1, self._values + values
        if self._values > self._most.values or self._tensors > self._most.tensors:
            limit = f"{self._most.values:,} values or {self._most.tensors:,} tensors"
            raise SourceError(
                self._name,
                f"it builds a network of more than {limit}",
                "what is stored is smaller",
                "check what builds it, and its arguments",
            )
