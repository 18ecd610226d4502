"""`sane-plugins`: look into networks, encode them, predict their properties, keep zoos, pretrain."""

from __future__ import annotations

from typing import Any

import click

from sane_plugins import __version__
from sane_plugins.cli.console import failures_told, note, open_host
from sane_plugins.cli.heads import heads
from sane_plugins.cli.inspect import inspect
from sane_plugins.cli.list_plugins import list_plugins
from sane_plugins.cli.networks import embed, predict
from sane_plugins.cli.pretrain import pretrain
from sane_plugins.cli.zoo import zoo
from sane_plugins.errors import SaneError

_ADDED = "sane_plugins.added"


class _WithPlugins(click.Group):
    """Our commands, and those that plugins add."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return all names, ours first."""
        return [*super().list_commands(context), *self._added(context)]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return ours; plugins are loaded only for a name that is not."""
        return super().get_command(context, name) or self._added(context).get(name)

    def invoke(self, context: click.Context) -> Any:
        """Run a command; a plugin's fails in one sentence as ours do."""
        try:
            return super().invoke(context)
        except Exception:
            if context.invoked_subcommand in self.commands:
                raise
            with failures_told(debug=False):
                raise

    def _added(self, context: click.Context) -> dict[str, click.Command]:
        """Return what plugins add, once per call; help must work whatever they do."""
        if _ADDED not in context.meta:
            try:
                context.meta[_ADDED] = {str(x.name): x for x in open_host().commands()}
            except SaneError as error:
                note(f"Error: {error}")
                context.meta[_ADDED] = {}
            for name in sorted(self.commands.keys() & context.meta[_ADDED].keys()):
                note(
                    f"Note: a plugin's command '{name}' is left out: it is the name of one of ours"
                )
                del context.meta[_ADDED][name]
        added: dict[str, click.Command] = context.meta[_ADDED]
        return added


@click.group(cls=_WithPlugins, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Encode networks, predict their properties, keep zoos and pretrain a SANE.

    SOURCE is anything that an installed plugin opens: a .safetensors, .pt or .onnx file, or a name
    such as torchvision:resnet18. To initialise a network, see 'sane-init --help'.
    """


for _command in (inspect, embed, predict, heads, zoo, pretrain, list_plugins):
    main.add_command(_command)

if __name__ == "__main__":
    main()
