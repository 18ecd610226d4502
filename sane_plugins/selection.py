"""Which installed plugins are loaded: the environment's say."""

from __future__ import annotations

import os
import re
from importlib.metadata import EntryPoint


def wanted(point: EntryPoint) -> bool:
    """Tell whether SANE_PLUGINS_LOAD and SANE_PLUGINS_DISABLE, which wins, allow a plugin."""
    only = os.environ.get("SANE_PLUGINS_LOAD")
    if names(point) & listed(os.environ.get("SANE_PLUGINS_DISABLE", "")):
        return False
    return only is None or bool(names(point) & listed(only))


def listed(text: str) -> set[str]:
    """Return the names in a list with commas, as package indexes compare them."""
    return {re.sub(r"[-_.]+", "-", name.strip()).lower() for name in text.split(",")} - {""}


def names(point: EntryPoint) -> set[str]:
    """Return the names that a plugin answers to: its entry point's and its distribution's."""
    return listed(f"{point.name},{distribution(point)}")


def distribution(point: EntryPoint) -> str:
    """Return the name of the distribution that a plugin came with."""
    return point.dist.name if point.dist else ""
