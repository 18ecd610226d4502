"""`sane-plugins heads`: commands for property heads."""

import click

from sane_plugins.cli.lazy_commands import LazyCommands


@click.group(
    commands=LazyCommands(
        {
            "fit": "sane_plugins.cli.heads.fit:fit",
            "show": "sane_plugins.cli.heads.show:show",
        }
    )
)
def heads() -> None:
    """Fit heads that predict properties of networks, and show what they are."""
