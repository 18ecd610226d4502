"""Plugins that are kept from loading: the list of those that the user disabled, and what is said of all.

The list is a file of the user's configuration, with a name on each line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TypeVar

from sane_plugins.errors import PluginError, SaneError, UsageError
from sane_plugins.plugins.installed import distribution_name, distribution_version, parse_name_list

SaneErrorT = TypeVar("SaneErrorT", bound=SaneError)
_MOST_BYTES = 2**16
_TOLD_NAMES = 3


@dataclass(frozen=True, kw_only=True)
class DisabledPlugin:
    """One that is installed and kept from loading: where it came from, and what lets it load, as a clause."""

    name: str
    distribution: str
    version: str
    to_enable: str


def disabled_file() -> Path:
    """Return the file of the names; it need not be there. SANE_PLUGINS_CONFIG names another folder."""
    import click

    folder = os.environ.get("SANE_PLUGINS_CONFIG") or click.get_app_dir("sane-plugins")
    return Path(folder) / "disabled.txt"


def disabled_names() -> frozenset[str]:
    """Return the normalised names in the file. Raises `PluginError` where it cannot be read."""
    path = disabled_file()
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES).decode()
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError) as error:
        raise PluginError(
            path, f"it cannot be read ({type(error).__name__})", "names are needed", "delete it"
        ) from error
    return frozenset(parse_name_list(",".join(text.splitlines())))


def set_disabled(name: str, is_disabled: bool) -> bool:
    """Disable a plugin or distribution for good, or enable it again; return whether that changed anything."""
    from sane_plugins.atomic_files import write_whole

    names, path = disabled_names(), disabled_file()
    new = names | parse_name_list(name) if is_disabled else names - parse_name_list(name)
    if new == names:
        return False
    text = "".join(f"{x}\n" for x in sorted(new))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda partial: partial.write_text(text))
    except OSError as error:
        raise UsageError(
            path,
            f"it cannot be written ({type(error).__name__})",
            "the list of disabled plugins is kept there",
            "set SANE_PLUGINS_CONFIG to a folder of yours, or use SANE_PLUGINS_DISABLE",
        ) from error
    return True


def describe_disabled(point: EntryPoint, to_enable: str) -> DisabledPlugin:
    """Describe a plugin that is kept from loading, given what lets it load."""
    return DisabledPlugin(
        name=point.name,
        distribution=distribution_name(point),
        version=distribution_version(point),
        to_enable=to_enable or "let this program load it",
    )


def or_enable(error: SaneErrorT, to_enable: Mapping[str, str]) -> SaneErrorT:
    """Return an error of what nobody knows, with plugins as a way out, given what lets each of them load."""
    if not error.is_unknown or not to_enable:
        return error
    disabled, ways = [*to_enable], {*to_enable.values()}
    names, more = ", ".join(disabled[:_TOLD_NAMES]), len(disabled) - _TOLD_NAMES
    way = ways.pop() if len(ways) == 1 else "'sane-plugins list' says how"
    which = f"one of {names}" if len(disabled) > 1 else names
    which += f" and {more} more" if more > 0 else ""
    hint = f"or enable what is disabled and may know it, {which}: {way}"
    return error if hint in error.way_out else error.with_way_out(hint)
