"""`sane-plugins zoo import`: turn a published zoo into a folder."""

from __future__ import annotations

from pathlib import Path

import click

from sane_plugins import zoo
from sane_plugins.cli.console import command_options
from sane_plugins.cli.zoo.show import print_zoo


@click.command("import")
@click.argument("index", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The new zoo's folder."
)
@click.option("--force", is_flag=True, help="Replace a zoo that exists there.")
@command_options
def import_zoo(index: Path, output: Path, force: bool, as_json: bool) -> None:
    """Import a published zoo: INDEX is its .json file, its .safetensors lies beside it."""
    zoo.require_new_zoo(output, force, [index, index.with_suffix(".safetensors")])
    published = zoo.import_published(index)
    networks = ((entry, published.state_dict(entry)) for entry in published.entries)
    print_zoo(zoo.write_zoo(output, published.name, networks, force), as_json)
