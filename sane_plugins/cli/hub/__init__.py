"""`hf-sane`: commands on networks in Hugging Face's cache; `hf sane` where it is registered with `hf`."""

from __future__ import annotations

import click

from sane_plugins import __version__
from sane_plugins.cli.console import VisibleCommand
from sane_plugins.cli.hub.hub_commands import HubCommands


class HubGroup(VisibleCommand, click.Group):
    """Group of the commands, and of what makes them known to `hf`."""


@click.group(
    "hf-sane",
    cls=HubGroup,
    commands=HubCommands(
        {
            "check": "sane_plugins.cli.check:check",
            "compare": "sane_plugins.cli.compare:compare",
            "convert": "sane_plugins.cli.convert:convert",
            "diff": "sane_plugins.cli.diff:diff",
            "embed": "sane_plugins.cli.embed:embed",
            "inspect": "sane_plugins.cli.inspect:inspect",
            "parents": "sane_plugins.cli.parents:parents",
            "predict": "sane_plugins.cli.predict:predict",
        },
        own={"register": "sane_plugins.cli.hub.register:register"},
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__)
def main() -> None:
    """Check, compare and read networks that 'hf download' has put into Hugging Face's cache.

    Nothing is downloaded, and no code of a repository is run. 'hf-sane register' makes these commands known
    to hf, as 'hf sane'.
    """
