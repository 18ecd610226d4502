"""Arguments of a function, given on the command line as NAME=VALUE."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sane_plugins.errors import UsageError


def read_setting(text: str, taken: Sequence[str], why: str, example: str) -> tuple[str, Any]:
    """Return a name and its value, numbers told from words.

    Raises `UsageError` for what is none, or names an argument that is `taken`; `why` says by what.
    """
    name, equals, value = text.partition("=")
    if not (name and equals) or name in taken:
        found = why if name in taken else "it has no value" if name else "it names no argument"
        raise UsageError(
            f"--set {text}",
            found,
            "NAME=VALUE of a further argument is needed",
            f"write for example --set {example}",
        )
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
