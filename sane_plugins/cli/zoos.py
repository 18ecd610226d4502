"""Commands that keep zoos."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sane_plugins.cli.console import command_options, print_json, print_table

if TYPE_CHECKING:
    from sane_plugins.zoo.store import Zoo

_FOLDER = click.Path(path_type=Path)


@click.group()
def zoo() -> None:
    """Import zoos of trained networks, and show what they hold."""


@zoo.command("import")
@click.argument("index", type=_FOLDER)
@click.option("-o", "--output", type=_FOLDER, required=True, help="The new zoo's folder.")
@click.option("--force", is_flag=True, help="Replace a zoo that exists there.")
@command_options
def import_zoo(index: Path, output: Path, force: bool, as_json: bool) -> None:
    """Import a published zoo: INDEX is its .json file, its .safetensors lies beside it."""
    from sane_plugins.zoo.store import import_published, write

    published = import_published(index)
    items = ((entry, published.state_dict(entry)) for entry in published.entries)
    _show(write(output, published.name, items, force), as_json)


@zoo.command("show")
@click.argument("folder", type=_FOLDER)
@command_options
def show_zoo(folder: Path, as_json: bool) -> None:
    """Show how many networks a zoo holds, and the range of every property."""
    from sane_plugins.zoo.store import Zoo

    _show(Zoo.open(folder), as_json)


def _show(found: Zoo, as_json: bool) -> None:
    ranges = _ranges(found)
    if as_json:
        told = {"networks": len(found.networks), "checkpoints": len(found), "properties": ranges}
        print_json({"name": found.name, **told})
        return
    title = f"{found.name}: {len(found.networks)} networks, {len(found)} checkpoints"
    print_table(title, ("property", "values"), list(ranges.items()))


def _ranges(found: Zoo) -> dict[str, Any]:
    """Return the range of every numeric property, and the counts of every other."""
    told = {}
    for name in sorted({key for entry in found.entries for key in entry.properties}):
        values = [e.properties[name] for e in found.entries if name in e.properties]
        if all(isinstance(v, float | int) and not isinstance(v, bool) for v in values):
            told[name] = f"{min(map(float, values)):.4g} to {max(map(float, values)):.4g}"
        else:
            told[name] = ", ".join(f"{k} ({n})" for k, n in Counter(map(str, values)).most_common())
    return told
