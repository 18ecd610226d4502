"""`sane-plugins zoo search`: the networks of a zoo that have most in common with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sane_plugins import fingerprints
from sane_plugins.cli.console import (
    command_options,
    open_host,
    print_json,
    print_table,
    progress_bars,
)
from sane_plugins.cli.options.among import Among, read_zoo
from sane_plugins.cli.parents import describe, relation_text
from sane_plugins.cli.zoo.conditions import CONDITION, Condition
from sane_plugins.errors import ZooError

_SHOWN_PROPERTIES = 4


@click.command()
@click.argument("folder", metavar="ZOO", type=click.Path(path_type=Path))
@click.argument("source", metavar="SOURCE")
@click.option(
    "-n",
    "--count",
    default=10,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="How many to list.",
)
@click.option(
    "--where",
    "conditions",
    type=CONDITION,
    multiple=True,
    help="Only networks with such a property: test_accuracy>=0.5, dataset=mnist; repeat for more.",
)
@command_options
def search(
    folder: Path, source: str, count: int, conditions: tuple[Condition, ...], as_json: bool
) -> None:
    """List the networks of a zoo nearest to SOURCE: its relatives, then those that are most alike.

    Relatives share weights, whatever the layers are called and however channels are ordered. Others are alike
    in what their layers sum up to: scales, tails, and how channels differ; the distance is in units of the
    median between two networks of the zoo.

    Example: sane-plugins zoo search my-zoo unknown.onnx --where "test_accuracy>=0.9"
    """
    host = open_host()
    with progress_bars(host):
        network = fingerprints.fingerprint(host.open(source))
        among = _chosen(read_zoo(host, folder), conditions, folder)
        found = fingerprints.most_alike(network, among.packed, count)
    among.tell_skipped()
    if as_json:
        rows: list[dict[str, Any]] = [
            {
                **describe(x.neighbor),
                "distance": x.distance,
                "properties": dict(among.properties(x.neighbor.name)),
            }
            for x in found
        ]
        print_json({"network": source, "compared": len(among), "nearest": rows})
        return
    names = [*dict.fromkeys(k for x in found for k in among.properties(x.neighbor.name))]
    names = [name for name in names if _tells(name, among)][:_SHOWN_PROPERTIES]
    table = []
    for x in found:
        own = among.properties(x.neighbor.name)
        values = (_shown(own.get(name, "")) for name in names)
        in_common = relation_text(x.neighbor)
        table.append((x.neighbor.name, in_common, f"{x.distance:.2f}", *values))
    columns = ("network", "in common", "distance", *names)
    print_table(f"nearest to {source} of {len(among)} networks", columns, table)


def _chosen(among: Among, conditions: tuple[Condition, ...], folder: Path) -> Among:
    """Return the networks that fulfil all conditions. Raises `ZooError` where none does."""
    kept = []
    for packed in among.packed:
        rows = [
            i
            for i, name in enumerate(packed.names)
            if all(condition(among.properties(name)) for condition in conditions)
        ]
        kept += [packed.take(rows)] if rows else []
    if not kept:
        raise ZooError(
            folder,
            f"none of its {len(among)} networks that could be read is asked for",
            "at least one is needed",
            "see the properties with 'sane-plugins zoo show'",
        )
    return Among(kept, among.entries, among.skipped)


def _tells(name: str, among: Among) -> bool:
    """Return whether networks differ in a property."""
    return len({str(entry.properties.get(name)) for entry in among.entries.values()}) > 1


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
