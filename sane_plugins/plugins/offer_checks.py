"""What is needed of each thing that a plugin offers by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from types import NoneType
from typing import Any

from sane_plugins.plugins.problems import AnswerError
from sane_plugins.plugins.requirements import (
    is_number,
    kind_of,
    require_methods,
    require_name,
    require_types,
    show_value,
    wrong,
)


def require_encoder(value: Any) -> None:
    """Raise `AnswerError` unless it encodes networks."""
    require_methods(value, "encode", "features")
    require_types(value, {"name": str})


def require_sampler(value: Any) -> None:
    """Raise `AnswerError` unless it draws latents, as it is or once bound to a problem."""
    if not callable(getattr(value, "bound", None)):
        require_methods(value, "__call__")
    elif isinstance(value, type):
        require_methods(value)


def require_transfer(value: Any) -> None:
    """Raise `AnswerError` unless it can be called as a `TransferMethod`."""
    if isinstance(value, type):
        require_methods(value)
    require_methods(value, "__call__")


def require_head(value: Any) -> None:
    """Raise `AnswerError` unless it estimates, from features of encoders that it names."""
    require_methods(value, "estimate")
    texts = dict.fromkeys(("features", "sane", "score"), str)
    require_types(value, {**texts, "scores": Mapping, "encoders": (tuple, list)})
    for name in value.encoders:
        require_name(name)
    for name, score in value.scores.items():
        require_name(name)
        if not is_number(score):
            raise AnswerError(f"its score of {name} is {show_value(score)}, and a number is needed")


def require_engine(value: Any) -> None:
    """Raise `AnswerError` unless it can be called."""
    if not callable(value):
        raise AnswerError(f"it is {kind_of(value)}, which cannot be called")


def require_offer(value: Any) -> None:
    """Raise `AnswerError` unless it is a `PromptOffer` whose information is whole."""
    from sane_plugins.grafting import PromptOffer

    if not isinstance(value, PromptOffer):
        raise AnswerError(f"it is {kind_of(value)} where a PromptOffer is needed")
    if not callable(value.load):
        raise AnswerError(f"its load is {kind_of(value.load)}, which cannot be called")
    _require_info(value.info)


def require_published_network(value: Any) -> None:
    """Raise `AnswerError` unless it is a `PublishedNetwork` whose information is whole."""
    from sane_plugins.grafting import PublishedNetwork

    if not isinstance(value, PublishedNetwork):
        raise AnswerError(f"it is {kind_of(value)} where a PublishedNetwork is needed")
    if not callable(value.build):
        raise AnswerError(f"its build is {kind_of(value.build)}, which cannot be called")
    require_types(value, {"tensors": (int, NoneType)})
    _require_info(value.info)


def _require_info(told: Any) -> None:
    from sane_plugins.grafting import PromptInfo

    if not isinstance(told, PromptInfo):
        raise AnswerError(f"its info is {kind_of(told)} where a PromptInfo is needed")
    require_types(told, dict.fromkeys(("name", "source", "task", "licence"), str))
    require_name(told.name)
    if not isinstance(told.classes, tuple | list) or not all(
        isinstance(x, str) for x in told.classes
    ):
        raise AnswerError("its classes are not a list of texts")
    _require_preparation(told.preparation)


def _require_preparation(told: Any) -> None:
    from sane_plugins.grafting import Preparation

    if told is None:
        return
    if not isinstance(told, Preparation):
        raise AnswerError(f"its preparation is {kind_of(told)} where a Preparation is needed")
    for name, needed in (("mean", None), ("deviation", None), ("size", 2)):
        numbers = getattr(told, name)
        is_right = isinstance(numbers, tuple | list) and len(numbers) == (needed or len(told.mean))
        if not is_right or not all(is_number(x) and isfinite(x) for x in numbers):
            raise AnswerError(f"the {name} of its preparation is {show_value(numbers)}")
    if not told.mean or min(told.deviation) <= 0 or min(told.size) < 1:
        raise AnswerError("its preparation divides by what is not above 0, or is of no image")


def require_prompt(value: Any) -> None:
    """Raise `AnswerError` unless an offer's function returned a prompt network or what a host opens."""
    from torch import nn

    from sane_plugins.grafting import PromptNetwork
    from sane_plugins.weights import WeightGraph

    if isinstance(value, PromptNetwork):
        require_types(value, {"graph": WeightGraph})
        if value.build is not None and not callable(value.build):
            raise AnswerError(f"its build is {kind_of(value.build)}, which cannot be called")
    elif not isinstance(value, str | Path | WeightGraph | nn.Module):
        raise wrong(value, "a PromptNetwork, a path, a module or a graph")


def check_command(value: Any) -> None:
    """Raise `AnswerError` for what is no command of click's; its help is asked for, since ours lists it."""
    import click

    if not isinstance(value, click.Command):
        raise AnswerError(f"it is {kind_of(value)} where a click.Command is needed")
    if inspect.iscoroutinefunction(value.callback):
        raise AnswerError("its function is 'async def', and click would never run it")
    value.get_short_help_str()
