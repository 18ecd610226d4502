"""What each hook must answer: which check is whose.

An answer of another kind raises `AnswerError`; of several things by name, the wrong ones are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from sane_plugins.plugins import offer_checks as offers
from sane_plugins.plugins import result_checks as results
from sane_plugins.plugins.problems import AnswerError, failure_of
from sane_plugins.plugins.requirements import require_name, require_no_coroutine, show_value, wrong

Check = Callable[[Any], None]
LeaveOut = Callable[[str, BaseException], object]
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
        results.require_encoding(answer, device)
    elif hook == "sane_prompts":
        offers.require_prompt(answer)
    elif hook == "sane_published_networks":
        results.require_module(answer, {})
    else:
        results.require_estimate(answer)
    return answer


def _named_items(hook: str, answer: Any) -> Sequence[tuple[Any, Any]]:
    """Return (name, item) of all that an answer holds; a command knows its name itself."""
    items: Iterator[tuple[Any, Any]]
    if hook == "sane_commands":
        if not isinstance(answer, list | tuple):
            raise wrong(answer, "a list of commands")
        items = ((getattr(command, "name", ""), command) for command in answer)
    else:
        if not isinstance(answer, Mapping):
            raise wrong(answer, "a mapping by name")
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
            leave_out(f"{noun} {show_value(name)}", failure)
    return right


def _require_item(check: Check, name: Any, value: Any) -> None:
    check(value)
    require_name(name)


_SINGLE: Mapping[str, Callable[[Any, Mapping[str, Any]], None]] = {
    "sane_encode": results.require_encoding_asked_for,
    "sane_cost": results.require_cost,
    "sane_initialize": results.require_initialization,
    "sane_open": results.require_graph,
    "sane_build": results.require_module,
    "sane_save": results.require_written,
    "sane_side_files": results.require_paths,
    "sane_check_save": results.require_true,
    "sane_progress": results.require_nothing,
}
_ITEMS: Mapping[str, tuple[str, Check]] = {
    "sane_predict_properties": ("property", results.require_estimate),
    "sane_encoders": ("encoder", offers.require_encoder),
    "sane_samplers": ("sampler", offers.require_sampler),
    "sane_transfers": ("transfer", offers.require_transfer),
    "sane_property_heads": ("head", offers.require_head),
    "sane_engines": ("engine", offers.require_engine),
    "sane_prompts": ("prompt", offers.require_offer),
    "sane_published_networks": ("network", offers.require_published_network),
    "sane_commands": ("command", offers.check_command),
}
MANY_ANSWERS = frozenset(_ITEMS) - {"sane_predict_properties"} | {"sane_progress"}
