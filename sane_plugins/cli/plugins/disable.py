"""`sane-plugins plugins disable` and `enable`: the lasting list of plugins that are not loaded."""

from __future__ import annotations

from difflib import get_close_matches

import click

from sane_plugins.cli.console import command_options, print_json, print_line
from sane_plugins.errors import UsageError
from sane_plugins.plugins import (
    disabled_file,
    disabled_names,
    how_to_enable,
    installed_points,
    parse_name_list,
    plugin_names,
    set_disabled,
)


@click.command()
@click.argument("name")
@command_options
def disable(name: str, as_json: bool) -> None:
    """Keep a plugin from loading, in all programs of this user, until it is enabled again.

    NAME is the plugin's or its distribution's, as 'sane-plugins list' shows them; nothing of it is imported.

    Example: sane-plugins plugins disable timm
    """
    _require_installed(name)
    _change(name, True, as_json)


@click.command()
@click.argument("name")
@command_options
def enable(name: str, as_json: bool) -> None:
    """Let a plugin load again that was disabled.

    Example: sane-plugins plugins enable timm
    """
    if not parse_name_list(name) <= disabled_names():
        _require_installed(name)  # else it may have been uninstalled since
    _change(name, False, as_json)


def _require_installed(name: str) -> None:
    points = installed_points(lambda *_: None)
    known: set[str] = set().union(*map(plugin_names, points))
    asked = parse_name_list(name)
    if len(asked) == 1 and asked <= known:
        return
    close = get_close_matches(name.lower(), sorted(known), n=1)
    raise UsageError(
        f"plugin '{name}'",
        "no plugin or distribution of that name is installed",
        f"one of {', '.join(sorted({x.name for x in points}))} is needed",
        f"did you mean {close[0]}" if close else "check the name",
    )


def _change(name: str, is_disabled: bool, as_json: bool) -> None:
    changed = set_disabled(name, is_disabled)
    names = sorted(disabled_names())
    points = [
        x for x in installed_points(lambda *_: None) if plugin_names(x) & parse_name_list(name)
    ]
    kept = {x.name: how_to_enable(x, names) for x in points}
    off = {plugin: way for plugin, way in kept.items() if way}
    if as_json:
        told = {"changed": changed, "disabled": names, "file": disabled_file()}
        print_json({**told, "not_loaded": off})
        return
    if changed:
        print_line(f"{name} is {'disabled' if is_disabled else 'enabled'}.")
    elif is_disabled or not off:
        print_line(f"{name} was {'disabled' if is_disabled else 'enabled'} already.")
    else:
        print_line(f"{name} is not in the list by that name.")
    for plugin, way in off.items() if not is_disabled else ():
        print_line(f"The plugin {plugin} is still kept from loading: {way}.")
    for plugin in sorted(kept.keys() - off.keys()) if is_disabled else ():
        print_line(f"The plugin {plugin} loads here all the same: SANE_PLUGINS_LOAD names it.")
    print_line(f"Disabled: {', '.join(names) or 'none'} ({disabled_file()}).")
