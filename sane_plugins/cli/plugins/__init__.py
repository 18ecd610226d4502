"""`sane-plugins plugins`: commands that keep plugins from loading, and let them load again."""

import click

from sane_plugins.cli.lazy_commands import LazyCommands


@click.group(
    commands=LazyCommands(
        {
            "disable": "sane_plugins.cli.plugins.disable:disable",
            "enable": "sane_plugins.cli.plugins.disable:enable",
        }
    )
)
def plugins() -> None:
    """Disable plugins for good, and enable them again."""
