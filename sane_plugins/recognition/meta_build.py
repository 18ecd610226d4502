"""Build networks without memory for their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from sane_plugins.runtime import drawing_from, without_warnings

# Constructors compute lengths and rates with these, and ask for their values.
_SMALL = frozenset((torch.linspace, torch.arange, torch.tensor, torch.logspace))
# They change values alone, of which there are none; asked of torch, they take most of the time.
_FILLS = frozenset(
    (
        *(getattr(torch.Tensor, f"{name}_") for name in ("normal", "uniform", "zero", "fill")),
        *(getattr(torch.Tensor, f"{name}_") for name in ("add", "mul", "clamp", "erfinv", "copy")),
        nn.init.constant_,
        nn.init.kaiming_normal_,
        nn.init.kaiming_uniform_,
        nn.init.normal_,
        nn.init.trunc_normal_,
        nn.init.uniform_,
        nn.init.xavier_uniform_,
    )
)


def build_on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Return what a function builds, its weights without values and memory; nothing is drawn."""
    with drawing_from(torch.Generator()), without_warnings(), torch.device("meta"):
        try:
            with _SmallTablesInMemory():
                return build()
        except (
            Exception
        ):  # a few compute with ranges and weights together; any code runs in a constructor
            return build()


class _SmallTablesInMemory(TorchFunctionMode):
    """A context in which ranges and given numbers have values, and nothing fills what has no memory."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function, on the CPU where its values may be asked for."""
        if func in _FILLS and args and isinstance(args[0], torch.Tensor) and args[0].is_meta:
            return args[0]
        kwargs = dict(kwargs or {})
        if func in _SMALL:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)
