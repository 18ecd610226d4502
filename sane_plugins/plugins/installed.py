"""The installed plugins: entry points of distributions, and which of them the environment allows."""

from __future__ import annotations

import os
import re
import shlex
import sys
import sysconfig
from collections.abc import Callable, Collection
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from importlib.metadata import (
    Distribution,
    EntryPoint,
    PackageNotFoundError,
    distributions,
    metadata,
)
from pathlib import Path
from typing import Any

from sane_plugins.errors import PluginError
from sane_plugins.plugins.problems import describe_error, failure_of, one_line
from sane_plugins.plugins.requirements import require_name

GROUP = "sane_plugins"
_OWN_DISTRIBUTION = "sane-plugins"
_CORRECT_IT = "correct it in the plugin's pyproject.toml, and install it again"
_MOST_OF_AN_ERROR = 200  # characters: the way out behind it is to be seen


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
    """Import what an entry point names. Raises `PluginError` that says of which distribution it is."""
    require_name(point.name)
    if not re.fullmatch(r"[\w.]+(\s*:\s*[\w.]+)?\s*(\[.*\])?", point.value.strip()):
        raise PluginError(
            f"plugin {point.name}",
            f"its entry point is '{point.value}'",
            "the name of a module, or module:object, is needed",
            _CORRECT_IT,
        )
    value, failure = failure_of(partial(import_module, point.module))
    if failure is not None:
        raise _no_import(point, failure) from failure
    where = f"module {point.module}"
    for part in filter(None, (point.attr or "").split(".")):
        if not hasattr(value, part):
            close = get_close_matches(part, dir(value), n=1)
            raise PluginError(
                f"plugin {point.name}",
                f"its entry point is '{point.value}' of {origin(point)}, and the {where} has no"
                f" attribute '{part}'",
                "the name of a module, or module:object, is needed",
                f"did you mean {close[0]}? {_CORRECT_IT}" if close else _CORRECT_IT,
            )
        value, where = getattr(value, part), f"object {part}"
    return value


def _no_import(point: EntryPoint, error: BaseException) -> PluginError:
    """Return the error for a module that does not import: of which distribution, and what to do."""
    described, missing = describe_error(error), ""
    if isinstance(error, ModuleNotFoundError):
        missing = str(error.name or "")
    if missing and f"{point.module}.".startswith(f"{missing}."):
        found, way_out = f"its entry point names the module {point.module} of", _CORRECT_IT
    else:
        found = f"it does not import: the module {point.module} of"
        way_out = "its author is to repair it"
        name = (getattr(error, "name", None) or "") if isinstance(error, ImportError) else ""
        if name.partition(".")[0] in ("sane_plugins", "sane-plugins"):
            way_out = "install versions of it and of sane-plugins that belong together"
        elif missing:
            way_out = f"install the package that has the module '{missing.partition('.')[0]}'"
        elif name:
            way_out = f"install the version of {name} that it was written for"
    return PluginError(
        f"plugin {point.name}",
        f"{found} {origin(point)} ({described[:_MOST_OF_AN_ERROR]})",
        "a module that imports is needed",
        way_out,
    )


def is_enabled(point: EntryPoint, disabled: Collection[str] = ()) -> bool:
    """Return whether a plugin is to be loaded, given the names that are disabled for good."""
    return not how_to_enable(point, disabled)


def how_to_enable(point: EntryPoint, disabled: Collection[str] = ()) -> str:
    """Return what lets a plugin load that is kept from it, as a clause; empty where nothing keeps it.

    SANE_PLUGINS_DISABLE takes precedence, then SANE_PLUGINS_LOAD, which says what this process loads.
    """
    names, load_list = plugin_names(point), os.environ.get("SANE_PLUGINS_LOAD")
    if names & parse_name_list(os.environ.get("SANE_PLUGINS_DISABLE", "")):
        return "take it out of SANE_PLUGINS_DISABLE"
    if load_list is not None:
        return "" if names & parse_name_list(load_list) else "name it in SANE_PLUGINS_LOAD"
    lines = [f"sane-plugins plugins enable {shlex.quote(x)}" for x in sorted(names & {*disabled})]
    return f"run '{' && '.join(lines)}'" if lines else ""


def parse_name_list(text: str) -> set[str]:
    """Return the names in a comma-separated list, normalised as package indexes do."""
    return {re.sub(r"[-_.]+", "-", name.strip()).lower() for name in text.split(",")} - {""}


def plugin_names(point: EntryPoint) -> set[str]:
    """Return the normalised names of a plugin: its entry point's and its distribution's."""
    return parse_name_list(f"{point.name},{distribution_name(point)}")


def is_ours(point: EntryPoint) -> bool:
    """Return whether a plugin came with this package."""
    return distribution_name(point) == _OWN_DISTRIBUTION


def own_extras() -> frozenset[str]:
    """Return the names of this package's extras, empty where it is not installed."""
    try:
        return frozenset(metadata(_OWN_DISTRIBUTION).get_all("Provides-Extra") or ())
    except PackageNotFoundError:
        return frozenset()


def distribution_name(point: EntryPoint) -> str:
    """Return the name of the distribution that a plugin came with, empty if that is not known."""
    return _text_of(point.dist, "name")


def origin(point: EntryPoint) -> str:
    """Return the distribution and the version of a plugin, to be shown."""
    text = f"{distribution_name(point)} {distribution_version(point)}".strip()
    return text or "an unnamed distribution"


def distribution_version(point: EntryPoint) -> str:
    """Return the version of the distribution that a plugin came with, empty if that is not known."""
    return _text_of(point.dist, "version")


def _text_of(distribution: Distribution | None, field: str) -> str:
    """Return a field of a distribution's metadata, which raise where their file is missing or broken."""
    text, _ = failure_of(lambda: getattr(distribution, field))
    return one_line(text) if isinstance(text, str) else ""
