"""Conditions on properties, as a user types them: test_accuracy>=0.5, dataset=mnist."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click

_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
_FORM = re.compile(r"\s*(?P<name>[^<>=!]+?)\s*(?P<operator>>=|<=|!=|==|>|<|=)\s*(?P<value>.+?)\s*")


@dataclass(frozen=True)
class Condition:
    """A comparison of one property with a value; networks without the property do not fulfil it."""

    name: str
    operator: str
    value: float | str

    def __call__(self, properties: Mapping[str, Any]) -> bool:
        """Return whether a network with these properties fulfils it."""
        found = properties.get(self.name)
        if found is None:
            return False
        compare = _OPERATORS[self.operator]
        if isinstance(found, bool | str) or isinstance(self.value, str):
            return compare(str(found).lower(), str(self.value).lower())
        return compare(float(found), self.value)


class _ConditionType(click.ParamType[Any]):
    name = "NAME>=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the condition."""
        if isinstance(value, Condition):
            return value
        parts = _FORM.fullmatch(value)
        if parts is None:
            self.fail(
                f"'{value}' is no condition; write a property, one of >= <= != > < =, and a value.",
                param,
                ctx,
            )
        text = parts["value"]
        try:
            right: float | str = float(text)
        except ValueError:
            right = text
        sign = "=" if parts["operator"] == "==" else parts["operator"]
        if isinstance(right, str) and sign not in ("=", "!="):
            self.fail(f"'{value}' asks for the order of '{text}', which is no number.", param, ctx)
        return Condition(parts["name"], sign, right)


CONDITION = _ConditionType()
