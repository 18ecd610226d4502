"""The installed plugins: entry points of distributions, and which of them the environment allows."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from collections.abc import Callable, Collection
from functools import partial
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path
from typing import Any

from sane_plugins.errors import PluginError
from sane_plugins.plugins.problems import failure_of, one_line
from sane_plugins.plugins.requirements import require_name

GROUP = "sane_plugins"
_OWN_DISTRIBUTION = "sane-plugins"


def installed_points(leave_out: Callable[[str, BaseException], object]) -> list[EntryPoint]:
    """Return the entry points of all that is installed, ours first, then by distribution.

    Ours come first so that no other distribution can take our names, and all others are asked before us. Of
    distributions of one name the first on the path counts. Python often searches the working directory too
    (an empty entry of the path, `python -m`), and whoever filled that folder installed nothing: it counts
    only where PYTHONPATH names it.
    """
    found: dict[str, list[EntryPoint]] = {}
    path = [x for x in sys.path if isinstance(x, str) and not _is_working_directory(x)]
    installed: list[Distribution] = []
    _, failure = failure_of(lambda: installed.extend(distributions(path=path)))
    if failure is not None:  # of another's finder; what was found before it remains
        leave_out("(finder of distributions)", failure)
    for distribution in installed:
        points, failure = failure_of(partial(_points_of, distribution))
        name = _text_of(distribution, "name") if points or failure else ""
        if failure is not None:  # its list cannot be read, and hides no other
            leave_out(name or "(unknown)", failure)
        if points:
            found.setdefault(min(parse_name_list(name), default=str(len(found))), points)
    return sorted(
        (point for points in found.values() for point in points),
        key=lambda point: (not is_ours(point), distribution_name(point)),
    )


def _points_of(distribution: Distribution) -> list[EntryPoint]:
    return [*distribution.entry_points.select(group=GROUP)]


def _is_working_directory(entry: str) -> bool:
    """Return whether an entry is the working directory, unless PYTHONPATH names it or pip installs there."""
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    installed = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    return _is_here(entry) and not any(_is_here(part) for part in (*named, *installed) if part)


def _is_here(entry: str) -> bool:
    try:
        return Path(entry).samefile(Path.cwd())
    except (OSError, ValueError):  # one of them is gone, or is no path
        return False


def load_point(point: EntryPoint) -> Any:
    """Import what an entry point names. Raises what the import raises."""
    require_name(point.name)
    if not re.fullmatch(r"[\w.]+(\s*:\s*[\w.]+)?\s*(\[.*\])?", point.value.strip()):
        raise PluginError(
            f"plugin {point.name}",
            f"its entry point is '{point.value}'",
            "the name of a module, or module:object, is needed",
            "correct it in the plugin's pyproject.toml, and install it again",
        )
    return point.load()


def is_enabled(point: EntryPoint, disabled: Collection[str] = ()) -> bool:
    """Return whether a plugin is to be loaded, given the names that are disabled for good.

    SANE_PLUGINS_DISABLE takes precedence, then SANE_PLUGINS_LOAD, which says what this process loads.
    """
    load_list = os.environ.get("SANE_PLUGINS_LOAD")
    if plugin_names(point) & parse_name_list(os.environ.get("SANE_PLUGINS_DISABLE", "")):
        return False
    if load_list is not None:
        return bool(plugin_names(point) & parse_name_list(load_list))
    return plugin_names(point).isdisjoint(disabled)


def parse_name_list(text: str) -> set[str]:
    """Return the names in a comma-separated list, normalised as package indexes do."""
    return {re.sub(r"[-_.]+", "-", name.strip()).lower() for name in text.split(",")} - {""}


def plugin_names(point: EntryPoint) -> set[str]:
    """Return the normalised names of a plugin: its entry point's and its distribution's."""
    return parse_name_list(f"{point.name},{distribution_name(point)}")


def is_ours(point: EntryPoint) -> bool:
    """Return whether a plugin came with this package."""
    return distribution_name(point) == _OWN_DISTRIBUTION


def distribution_name(point: EntryPoint) -> str:
    """Return the name of the distribution that a plugin came with, empty if that is not known."""
    return _text_of(point.dist, "name")


def distribution_version(point: EntryPoint) -> str:
    """Return the version of the distribution that a plugin came with, empty if that is not known."""
    return _text_of(point.dist, "version")


def _text_of(distribution: Distribution | None, field: str) -> str:
    """Return a field of a distribution's metadata, which raise where their file is missing or broken."""
    text, _ = failure_of(lambda: getattr(distribution, field))
    return one_line(text) if isinstance(text, str) else ""
