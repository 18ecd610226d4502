"""`sane-plugins`: look into networks, encode them, predict their properties, keep zoos, pretrain."""

from __future__ import annotations

import click

from sane_plugins import __version__
from sane_plugins.cli.console import open_host
from sane_plugins.cli.networks import embed, inspect, predict
from sane_plugins.cli.plugins import list_plugins
from sane_plugins.cli.zoos import pretrain, zoo


class _WithPlugins(click.Group):
    """Our commands, and those that plugins add."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return all names, ours first."""
        return [*super().list_commands(context), *_added()]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return ours; plugins are loaded only for a name that is not."""
        return super().get_command(context, name) or _added().get(name)


@click.group(cls=_WithPlugins, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Encode networks, predict their properties, keep zoos and pretrain a SANE.

    SOURCE is anything that an installed plugin opens: a .safetensors, .pt or .onnx file, or a name
    such as torchvision:resnet18. To initialise a network, see 'sane-init --help'.
    """


def _added() -> dict[str, click.Command]:
    return {str(command.name): command for command in open_host().commands()}


for _command in (inspect, embed, predict, zoo, pretrain, list_plugins):
    main.add_command(_command)
