"""Commands that keep zoos."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sane_plugins.cli.console import command_options, print_json, print_table
from sane_plugins.cli.zoo_add import add_command
from sane_plugins.cli.zoo_evaluate import evaluate_command
from sane_plugins.cli.zoo_train import train_command

if TYPE_CHECKING:
    from sane_plugins.zoo import Zoo

_FOLDER = click.Path(path_type=Path)
_MOST = 12  # values of a property that are listed


@click.group()
def zoo() -> None:
    """Make zoos of trained networks, measure them, and show what they hold."""


zoo.add_command(train_command)
zoo.add_command(add_command)
zoo.add_command(evaluate_command)


@zoo.command("import")
@click.argument("index", type=_FOLDER)
@click.option("-o", "--output", type=_FOLDER, required=True, help="The new zoo's folder.")
@click.option("--force", is_flag=True, help="Replace a zoo that exists there.")
@command_options
def import_zoo(index: Path, output: Path, force: bool, as_json: bool) -> None:
    """Import a published zoo: INDEX is its .json file, its .safetensors lies beside it."""
    from sane_plugins.zoo import import_published, write_zoo

    published = import_published(index)
    items = ((entry, published.state_dict(entry)) for entry in published.entries)
    _show(write_zoo(output, published.name, items, force), as_json)


@zoo.command("show")
@click.argument("folder", type=_FOLDER)
@command_options
def show_zoo(folder: Path, as_json: bool) -> None:
    """Show how many networks a zoo holds, of which architectures, and the range of every property."""
    from sane_plugins.zoo import Zoo

    _show(Zoo.open(folder), as_json)


def _show(found: Zoo, as_json: bool) -> None:
    ranges, architectures = _ranges(found), _architectures(found)
    finite = Counter(entry.properties.get("finite") for entry in found.entries)
    told: dict[str, Any] = {
        "networks": len(found.networks),
        "checkpoints": len(found),
        "architectures": architectures,
        "finite": finite[True],
        "not_finite": finite[False],
        "finite_unknown": finite[None],
        "without_factory": sum(not entry.factory for entry in found.entries),
    }
    if as_json:
        listed = [{"network": n, "checkpoints": c} for n, c in _checkpoints(found).items()]
        print_json({"name": found.name, **told, "properties": ranges, "list": listed})
        return
    counts = [(name.replace("_", " "), told[name]) for name in told if name != "architectures"]
    print_table(found.name, ("", "count"), counts)
    rows = [tuple(row.values()) for row in architectures]
    print_table(
        "architectures", ("built by", "parameters", "tensors", "first", "checkpoints"), rows
    )
    print_table("properties", ("property", "values"), list(ranges.items()))


def _architectures(found: Zoo) -> list[dict[str, Any]]:
    """Describe each set of shapes, the commonest first; those of zoos of version 1 by their factories."""
    counts = Counter((e.form, str(e.factory.get("name", ""))) for e in found.entries)
    told = []
    for (name, factory), count in counts.most_common():
        form = found.forms.get(name)
        told.append(
            {
                "factory": factory or "unknown",
                "parameters": form.parameters if form else "unknown",
                "tensors": len(form.tensors) if form else "unknown",
                "first": f"{form.tensors[0][0]} {'x'.join(map(str, form.tensors[0][2]))}"
                if form
                else "unknown",
                "checkpoints": count,
            }
        )
    return told


def _checkpoints(found: Zoo) -> dict[str, list[str]]:
    told: dict[str, list[str]] = {}
    for entry in found.entries:
        told.setdefault(entry.network, []).append(entry.checkpoint)
    return told


def _ranges(found: Zoo) -> dict[str, Any]:
    """Return the range of every numeric property, and the counts of every other."""
    told = {}
    for name in sorted({key for entry in found.entries for key in entry.properties}):
        values = [e.properties[name] for e in found.entries if name in e.properties]
        if all(isinstance(v, float | int) and not isinstance(v, bool) for v in values):
            told[name] = f"{min(map(float, values)):.4g} to {max(map(float, values)):.4g}"
        else:
            told[name] = _counted(Counter(map(str, values)))
    return told


def _counted(counts: Counter[str]) -> str:
    few = ", ".join(f"{value} ({count})" for value, count in counts.most_common(_MOST))
    return few if len(counts) <= _MOST else f"{few}, and {len(counts) - _MOST} more"
