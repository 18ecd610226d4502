"""What each hook must answer, and what is needed of each thing that is offered.

An answer of another kind raises `AnswerError`; of several things by name, the wrong ones are left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from math import isfinite, isnan
from numbers import Real
from pathlib import Path
from typing import Any

from sane_plugins.plugins.problems import AnswerError, failure_of

Check = Callable[[Any], None]
LeaveOut = Callable[[str, BaseException], object]
_MAX_NAME = 100
_MAX_ITEMS = 1000


def check_answer(hook: str, answer: Any, arguments: Mapping[str, Any], leave_out: LeaveOut) -> Any:
    """Return a hook's answer, of several things the right ones; raise `AnswerError` for a wrong answer."""
    require_no_coroutine(answer)
    if hook in _ITEMS:
        noun, check = _ITEMS[hook]
        pairs = _named_items(hook, answer)
        right = _right_items(noun, pairs, check, leave_out)
        if pairs and not right and hook not in MANY_ANSWERS:
            raise AnswerError("nothing of what it returned can be used")
        return right
    if hook in _SINGLE:
        _SINGLE[hook](answer, arguments)
    return answer


def check_use(hook: str, answer: Any, device: str = "cpu") -> Any:
    """Return what an offered thing answered when it was used; raise `AnswerError` if it is wrong."""
    require_no_coroutine(answer)
    if hook == "sane_encoders":
        _require_encoding(answer, device)
    elif hook == "sane_prompts":
        _require_prompt(answer)
    else:
        _require_estimate(answer)
    return answer


def require_no_coroutine(answer: Any) -> None:
    """Raise `AnswerError` for what has yet to run; it is closed, since nobody will await it."""
    if inspect.isawaitable(answer) or inspect.isasyncgen(answer) or inspect.isgenerator(answer):
        close = getattr(answer, "close", None)
        if callable(close):
            close()
        raise AnswerError(f"it returned {_kind(answer)}, and hooks are plain functions")


def _named_items(hook: str, answer: Any) -> Sequence[tuple[Any, Any]]:
    """Return (name, item) of all that an answer holds; a command knows its name itself."""
    items: Iterator[tuple[Any, Any]]
    if hook == "sane_commands":
        if not isinstance(answer, list | tuple):
            raise _wrong(answer, "a list of commands")
        items = ((getattr(command, "name", ""), command) for command in answer)
    else:
        if not isinstance(answer, Mapping):
            raise _wrong(answer, "a mapping by name")
        items = iter(answer.items())
    pairs = list(islice(items, _MAX_ITEMS + 1))
    if len(pairs) > _MAX_ITEMS:
        raise AnswerError(f"it returned more than {_MAX_ITEMS} things")
    return pairs


def _right_items(
    noun: str, pairs: Sequence[tuple[Any, Any]], check: Check, leave_out: LeaveOut
) -> dict[str, Any]:
    right: dict[str, Any] = {}
    for name, value in pairs:
        _, failure = failure_of(partial(_require_item, check, name, value))
        if failure is None:
            right[str(name)] = value
        else:
            leave_out(f"{noun} {_show(name)}", failure)
    return right


def _require_item(check: Check, name: Any, value: Any) -> None:
    check(value)
    require_name(name)


def require_name(name: Any) -> None:
    """Raise `AnswerError` unless a name can be shown and typed."""
    if not isinstance(name, str):
        raise AnswerError(f"its name is {_kind(name)} where a text is needed")
    text = str(name)  # what will be shown of a subclass
    if not text.strip() or not text.isprintable() or len(text) > _MAX_NAME:
        raise AnswerError(f"its name is not a printable text of 1 to {_MAX_NAME} characters")


def _require_methods(value: Any, *methods: str) -> None:
    if isinstance(value, type):
        raise AnswerError(f"it is the class {value.__name__} where an object is needed")
    for method in methods:
        if not callable(getattr(value, method, None)):
            raise AnswerError(f"it is {_kind(value)} without a method {method}")


def _require_types(value: Any, fields: Mapping[str, type | tuple[type, ...]]) -> None:
    for field, kind in fields.items():
        if not isinstance(found := getattr(value, field, None), kind):
            raise AnswerError(f"its {field} is {_kind(found)}")


def _require_encoder(value: Any) -> None:
    _require_methods(value, "encode", "features")
    _require_types(value, {"name": str})


def _require_sampler(value: Any) -> None:
    if not callable(getattr(value, "bound", None)):
        _require_methods(value, "__call__")
    elif isinstance(value, type):
        _require_methods(value)


def _require_transfer(value: Any) -> None:
    if isinstance(value, type):
        _require_methods(value)
    _require_methods(value, "__call__")


def _require_head(value: Any) -> None:
    from sane_plugins.features import ENCODERS

    _require_methods(value, "estimate")
    texts = dict.fromkeys(("features", "sane", "score"), str)
    _require_types(value, {**texts, "scores": Mapping, "encoders": (tuple, list)})
    unknown = [x for x in value.encoders if not isinstance(x, str) or x not in ENCODERS]
    if unknown:
        raise AnswerError(f"it reads features of {_show(unknown[0])}, which is no built-in encoder")
    for name, score in value.scores.items():
        require_name(name)
        if not _is_number(score):
            raise AnswerError(f"its score of {name} is {_show(score)}, and a number is needed")


def _require_engine(value: Any) -> None:
    if not callable(value):
        raise AnswerError(f"it is {_kind(value)}, which cannot be called")


def _require_offer(value: Any) -> None:
    from sane_plugins.grafting import PromptInfo, PromptOffer

    if not isinstance(value, PromptOffer):
        raise AnswerError(f"it is {_kind(value)} where a PromptOffer is needed")
    if not isinstance(value.info, PromptInfo):
        raise AnswerError(f"its info is {_kind(value.info)} where a PromptInfo is needed")
    if not callable(value.load):
        raise AnswerError(f"its load is {_kind(value.load)}, which cannot be called")
    _require_types(value.info, dict.fromkeys(("name", "source", "task", "licence"), str))
    require_name(value.info.name)
    classes = value.info.classes
    if not isinstance(classes, tuple | list) or not all(isinstance(x, str) for x in classes):
        raise AnswerError("its classes are not a list of texts")
    _require_preparation(value.info.preparation)


def _require_preparation(told: Any) -> None:
    from sane_plugins.grafting import Preparation

    if told is None:
        return
    if not isinstance(told, Preparation):
        raise AnswerError(f"its preparation is {_kind(told)} where a Preparation is needed")
    for name, needed in (("mean", None), ("deviation", None), ("size", 2)):
        numbers = getattr(told, name)
        is_right = isinstance(numbers, tuple | list) and len(numbers) == (needed or len(told.mean))
        if not is_right or not all(_is_number(x) and isfinite(x) for x in numbers):
            raise AnswerError(f"the {name} of its preparation is {_show(numbers)}")
    if not told.mean or min(told.deviation) <= 0 or min(told.size) < 1:
        raise AnswerError("its preparation divides by what is not above 0, or is of no image")


def _require_prompt(value: Any) -> None:
    """Raise `AnswerError` unless an offer's function returned a prompt network or what a host opens."""
    from torch import nn

    from sane_plugins.grafting import PromptNetwork
    from sane_plugins.weights import WeightGraph

    if isinstance(value, PromptNetwork):
        _require_types(value, {"graph": WeightGraph})
        if value.build is not None and not callable(value.build):
            raise AnswerError(f"its build is {_kind(value.build)}, which cannot be called")
    elif not isinstance(value, str | Path | WeightGraph | nn.Module):
        raise _wrong(value, "a PromptNetwork, a path, a module or a graph")


def check_command(value: Any) -> None:
    """Raise `AnswerError` for what is no command of click's; its help is asked for, since ours lists it."""
    import click

    if not isinstance(value, click.Command):
        raise AnswerError(f"it is {_kind(value)} where a click.Command is needed")
    if inspect.iscoroutinefunction(value.callback):
        raise AnswerError("its function is 'async def', and click would never run it")
    value.get_short_help_str()


def _require_encoding(value: Any, device: str = "cpu") -> None:
    import torch

    from sane_plugins.features import Encoding

    if not isinstance(value, Encoding):
        raise _wrong(value, "an Encoding")
    _require_types(
        value, {"embedding": torch.Tensor, "layers": torch.Tensor, "names": tuple, "encoder": str}
    )
    if not all(isinstance(name, str) for name in value.names):
        raise AnswerError("its names are not texts")
    _require_spans(value.spans, len(value.names))
    if value.embedding.ndim != 1:
        raise AnswerError(f"its embedding has shape {_shape(value.embedding)}, and (E,) is needed")
    if value.layers.ndim != 2 or len(value.layers) != len(value.names):
        raise AnswerError(
            f"its layers have shape {_shape(value.layers)}, and ({len(value.names)}, E) is needed for"
            f" {len(value.names)} names"
        )
    tensors = {"embedding": value.embedding, "layers": value.layers, "latents": value.latents}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor):
            raise AnswerError(f"its {name} are {_kind(tensor)}")
        if tensor.device.type not in ("cpu", torch.device(device).type):
            raise AnswerError(f"its {name} are on {tensor.device}, and {device} was asked for")
        if tensor.layout != torch.strided or tensor.is_complex():
            raise AnswerError(f"its {name} are no dense tensor of real numbers")
        # Latents may be large, and what is not finite in them is not in their means either.
        if name != "latents" and not bool(torch.isfinite(tensor).all()):
            raise AnswerError(f"its {name} hold numbers that are not finite")
    if value.latents is not None and (
        value.latents.ndim != 2 or len(value.latents) != value.tokens
    ):
        raise AnswerError(
            f"its latents have shape {_shape(value.latents)}, and ({value.tokens}, L) is needed"
        )


def _require_spans(spans: Any, names: int) -> None:
    if not isinstance(spans, list | tuple) or len(spans) not in (0, names):
        raise AnswerError(f"its spans are not a list of {names} token ranges, and not empty")
    for span in spans:
        is_pair = isinstance(span, list | tuple) and [type(x) for x in span] == [int, int]
        if not is_pair or not 0 <= span[0] <= span[1]:
            raise AnswerError("one of its spans is no range of tokens")


def _require_estimate(value: Any) -> None:
    from sane_plugins.properties import CategoryEstimate, Estimate

    if not isinstance(value, Estimate | CategoryEstimate):
        raise _wrong(value, "an Estimate or a CategoryEstimate")
    _require_types(value, {"property": str, "features": str})
    if type(value.in_distribution).__name__ not in ("bool", "bool_"):
        raise AnswerError(f"its in_distribution is {_show(value.in_distribution)}")
    _require_share(value.coverage, "coverage")
    if value.typicality is not None:
        _require_share(value.typicality, "typicality")
    if isinstance(value, Estimate):
        _require_types(value, {"unit": str})
        if not _is_number(value.value) or not isfinite(value.value):
            raise AnswerError(f"its value is {_show(value.value)}, and a finite number is needed")
        _require_interval(value.interval)
        return
    _require_types(value, {"value": str, "set": (tuple, list), "probabilities": Mapping})
    for name, share in value.probabilities.items():
        require_name(name)
        _require_share(share, f"probability of {name}")
    for name in (value.value, *value.set):
        if name not in value.probabilities:
            raise AnswerError(f"{_show(name)} is not among its probabilities")


def _require_interval(interval: Any) -> None:
    is_pair = isinstance(interval, tuple | list) and len(interval) == 2
    if not is_pair or not all(_is_number(x) and not isnan(x) for x in interval):
        raise AnswerError(f"its interval is {_show(interval)}, and two numbers are needed")
    if interval[0] > interval[1]:
        raise AnswerError("its interval ends before it begins")


def _require_share(value: Any, name: str) -> None:
    if not _is_number(value) or not 0 <= value <= 1:
        raise AnswerError(f"its {name} is {_show(value)}, and a number from 0 to 1 is needed")


def _require_graph(answer: Any, _: Mapping[str, Any]) -> None:
    from sane_plugins.weights import WeightGraph

    if not isinstance(answer, WeightGraph):
        raise _wrong(answer, "a WeightGraph")


def _require_module(answer: Any, _: Mapping[str, Any]) -> None:
    from torch import nn

    if not isinstance(answer, nn.Module):
        raise _wrong(answer, "a torch.nn.Module")


def _require_written(answer: Any, arguments: Mapping[str, Any]) -> None:
    if not isinstance(answer, str | Path):
        raise _wrong(answer, "the path written")
    target = arguments.get("target")
    if target is not None and Path(answer) != Path(target):
        raise AnswerError(f"it wrote {_show(str(answer))}, and {_show(str(target))} was asked for")
    if not Path(answer).exists():
        raise AnswerError(f"it wrote nothing to {_show(str(answer))}")


def _require_true(answer: Any, _: Mapping[str, Any]) -> None:
    if answer is not True:
        raise AnswerError(f"it returned {_show(answer)}, and True or None is needed")


def _require_paths(answer: Any, _: Mapping[str, Any]) -> None:
    if not isinstance(answer, list | tuple) or not all(isinstance(x, str | Path) for x in answer):
        raise _wrong(answer, "a list of paths")


def _require_initialization(answer: Any, _: Mapping[str, Any]) -> None:
    from sane_plugins.initialize import Initialization

    if not isinstance(answer, Initialization):
        raise _wrong(answer, "an Initialization")
    _require_graph(answer.graph, {})
    _require_module(answer.module, {})


def _require_encoding_asked_for(answer: Any, arguments: Mapping[str, Any]) -> None:
    options = arguments.get("options")
    _require_encoding(answer, getattr(options, "device", "cpu"))


def _require_nothing(answer: Any, _: Mapping[str, Any]) -> None:
    raise _wrong(answer, "nothing")


_SINGLE: Mapping[str, Callable[[Any, Mapping[str, Any]], None]] = {
    "sane_encode": _require_encoding_asked_for,
    "sane_initialize": _require_initialization,
    "sane_open": _require_graph,
    "sane_build": _require_module,
    "sane_save": _require_written,
    "sane_side_files": _require_paths,
    "sane_check_save": _require_true,
    "sane_progress": _require_nothing,
}
_ITEMS: Mapping[str, tuple[str, Check]] = {
    "sane_predict_properties": ("property", _require_estimate),
    "sane_encoders": ("encoder", _require_encoder),
    "sane_samplers": ("sampler", _require_sampler),
    "sane_transfers": ("transfer", _require_transfer),
    "sane_property_heads": ("head", _require_head),
    "sane_engines": ("engine", _require_engine),
    "sane_prompts": ("prompt", _require_offer),
    "sane_commands": ("command", check_command),
}
MANY_ANSWERS = frozenset(_ITEMS) - {"sane_predict_properties"} | {"sane_progress"}


def _wrong(answer: Any, needed: str) -> AnswerError:
    return AnswerError(f"it returned {_kind(answer)} where {needed} is needed")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _show(value: Any) -> str:
    """Return a value's text in short; that of an unknown object may be long, or raise."""
    return f"{value!r:.60}" if isinstance(value, str | int | float | bool) else type(value).__name__


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
