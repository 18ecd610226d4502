"""Plugins that the user disabled for good: names in a file of the user's configuration, one a line."""

from __future__ import annotations

import os
from pathlib import Path

from sane_plugins.errors import PluginError, UsageError
from sane_plugins.plugins.installed import parse_name_list

_MOST_BYTES = 2**16


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
