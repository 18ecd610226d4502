"""Parse `--set NAME=VALUE`: further arguments of the function that builds a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sane_plugins.errors import UsageError


def parse_settings(
    settings: Sequence[str], reserved: Sequence[str], reserved_reason: str, example: str
) -> dict[str, Any]:
    """Return values by name; valid JSON is parsed (8, 0.5, true, [1, 2]), anything else is a string.

    Raises `UsageError` for text that is not NAME=VALUE, or names a `reserved` argument (`reserved_reason`).
    """
    return dict(_parse_setting(text, reserved, reserved_reason, example) for text in settings)


def _parse_setting(
    text: str, reserved: Sequence[str], reserved_reason: str, example: str
) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals) or name in reserved:
        problem = (
            reserved_reason
            if name in reserved
            else "it has no value"
            if name
            else "it names no argument"
        )
        raise UsageError(
            f"--set {text}",
            problem,
            "NAME=VALUE of a further argument is needed",
            f"write for example --set {example}",
        )
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
