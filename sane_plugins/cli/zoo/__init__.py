"""`sane-plugins zoo`: commands that keep zoos."""

import click

from sane_plugins.cli.lazy_commands import LazyCommands


@click.group(
    commands=LazyCommands(
        {
            "add": "sane_plugins.cli.zoo.add:add",
            "duplicates": "sane_plugins.cli.zoo.duplicates:duplicates",
            "evaluate": "sane_plugins.cli.zoo.evaluate:evaluate",
            "import": "sane_plugins.cli.zoo.import_:import_zoo",
            "search": "sane_plugins.cli.zoo.search:search",
            "show": "sane_plugins.cli.zoo.show:show",
            "suggest": "sane_plugins.cli.zoo.suggest:suggest",
            "train": "sane_plugins.cli.zoo.train:train",
            "tree": "sane_plugins.cli.zoo.tree:tree",
        }
    )
)
def zoo() -> None:
    """Make zoos of trained networks, measure them, search them, and show what they hold."""
