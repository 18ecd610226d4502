"""`sane-plugins`: inspect networks, encode them, predict their properties, keep zoos, pretrain a SANE.

A command's module imports packages, not names from them: a package loads torch when one of its names is
used, so that help is shown at once.
"""

from __future__ import annotations

from typing import Any

import click

from sane_plugins import __version__
from sane_plugins.cli.console import VisibleCommand, note, open_host, report_errors
from sane_plugins.cli.lazy_commands import LazyCommands
from sane_plugins.cli.results import release_standard_output
from sane_plugins.errors import PluginError, SaneError
from sane_plugins.plugins import describe_error

_PLUGIN_COMMANDS = "sane_plugins.commands"
_TOLD_AS_THEY_ARE = (
    SaneError,
    click.ClickException,
    click.exceptions.Exit,
    click.Abort,
    BrokenPipeError,
)

_COMMANDS = LazyCommands(
    {
        "check": "sane_plugins.cli.check:check",
        "compare": "sane_plugins.cli.compare:compare",
        "convert": "sane_plugins.cli.convert:convert",
        "cost": "sane_plugins.cli.cost:cost",
        "diff": "sane_plugins.cli.diff:diff",
        "doctor": "sane_plugins.cli.doctor:doctor",
        "embed": "sane_plugins.cli.embed:embed",
        "heads": "sane_plugins.cli.heads:heads",
        "inspect": "sane_plugins.cli.inspect:inspect",
        "list": "sane_plugins.cli.list_plugins:list_plugins",
        "parents": "sane_plugins.cli.parents:parents",
        "plugins": "sane_plugins.cli.plugins:plugins",
        "predict": "sane_plugins.cli.predict:predict",
        "pretrain": "sane_plugins.cli.pretrain:pretrain",
        "report": "sane_plugins.cli.report:report",
        "run": "sane_plugins.cli.run:run",
        "zoo": "sane_plugins.cli.zoo:zoo",
    }
)


class PluginGroup(VisibleCommand, click.Group):
    """Group of our commands and the commands of plugins."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return all names, ours first."""
        return [*super().list_commands(context), *self._plugin_commands(context)]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return a command; plugins are loaded only for a name that is not one of ours."""
        return super().get_command(context, name) or self._plugin_commands(context).get(name)

    def invoke(self, context: click.Context) -> Any:
        """Run a command; errors of a plugin's command are told in one sentence that names it."""
        try:
            return super().invoke(context)
        except Exception as error:
            if context.invoked_subcommand in self.commands:
                raise
            with report_errors(debug=False):
                if isinstance(error, _TOLD_AS_THEY_ARE):
                    raise
                raise PluginError(
                    f"command '{context.invoked_subcommand}' of a plugin",
                    f"it raised {describe_error(error)}",
                    "it must end without",
                    "tell its author; 'sane-plugins list --hook sane_commands' shows the plugin",
                ) from error

    def _plugin_commands(self, context: click.Context) -> dict[str, click.Command]:
        """Return the commands of plugins, loaded once per run; help must work whatever plugins do."""
        if _PLUGIN_COMMANDS not in context.meta:
            try:
                offered = open_host().commands(taken=self.commands.keys())
            except SaneError as error:
                note(f"Error: {error}")
                offered = []
            commands = {str(command.name): command for command in offered}
            release_standard_output()  # a plugin's command prints its own result
            context.meta[_PLUGIN_COMMANDS] = commands
        loaded: dict[str, click.Command] = context.meta[_PLUGIN_COMMANDS]
        return loaded


@click.group(
    "sane-plugins",
    cls=PluginGroup,
    commands=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__)
def main() -> None:
    """Encode networks, predict their properties, keep zoos and pretrain a SANE.

    SOURCE is anything that an installed plugin opens: a .safetensors, .pt or .onnx file, or a name
    such as torchvision:resnet18. To initialise a network, see 'sane-init --help'.
    """
