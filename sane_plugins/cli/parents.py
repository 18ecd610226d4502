"""`sane-plugins parents`: which networks does this one come from?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sane_plugins import fingerprints
from sane_plugins.cli.console import (
    command_options,
    note,
    open_host,
    print_json,
    print_table,
    progress_bars,
)
from sane_plugins.cli.options.among import read_among

if TYPE_CHECKING:
    from sane_plugins.fingerprints import Neighbor, NetworkFingerprint


@click.command()
@click.argument("source", metavar="SOURCE")
@click.option(
    "--among",
    "names",
    metavar="ZOO",
    multiple=True,
    required=True,
    help="A zoo, a folder of networks, or a network; repeat for more.",
)
@click.option(
    "-n",
    "--count",
    default=10,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="How many relatives to list, at most.",
)
@command_options
def parents(source: str, names: tuple[str, ...], count: int, as_json: bool) -> None:
    """Find the networks that SOURCE was tuned, pruned, rounded, shuffled or exported from.

    Networks are compared by what their layers hold, whatever the layers are called, in whatever order their
    channels are. A zoo is read once and indexed. Networks trained from one random seed count as relatives.

    Example: sane-plugins parents unknown.onnx --among my-zoo
    """
    host = open_host()
    with progress_bars(host):
        network = fingerprints.fingerprint(host.open(source))
        among = read_among(host, names)
        found = fingerprints.nearest(network, among.packed, count)
    among.tell_skipped()
    relatives = [x for x in found if x.relationship.is_related]
    origins = {x.name: _origin(network, among.packed, x) for x in relatives}
    if as_json:
        print_json(
            {
                "network": source,
                "compared": len(among),
                "skipped": among.skipped,
                "relatives": [
                    {
                        **describe(x),
                        "direction": origins[x.name],
                        "properties": dict(among.properties(x.name)),
                    }
                    for x in relatives
                ],
            }
        )
        return
    if not relatives:
        nearest = f"; the nearest, {found[0].name}, is a stranger" if found else ""
        note(f"None of {len(among)} networks is a relative of {source}{nearest}.")
        return
    rows = [
        (x.name, relation_text(x), f"{x.relationship.similarity:.3f}", origins[x.name])
        for x in relatives
    ]
    columns = ("network", "what it has in common", "similarity", f"beside {source}")
    print_table(f"relatives of {source} among {len(among)} networks", columns, rows)


def describe(neighbor: Neighbor) -> dict[str, Any]:
    """Return a neighbour as plain data."""
    relationship = neighbor.relationship
    return {
        "name": neighbor.name,
        "similarity": relationship.similarity,
        "in_order": relationship.in_order,
        "recognized": relationship.recognized,
        "related": relationship.is_related,
        "same": relationship.is_same,
    }


def relation_text(neighbor: Neighbor) -> str:
    """Say what a network has in common with another."""
    relationship = neighbor.relationship
    order = (
        "" if relationship.in_order >= relationship.recognized else ", channels in another order"
    )
    if relationship.is_same:
        return f"the same weights{order}"
    if relationship.is_related:
        return f"weights of one origin{order}"
    return "nothing"


def _origin(
    network: NetworkFingerprint, packed: list[fingerprints.PackedFingerprints], neighbor: Neighbor
) -> str:
    """Say which of two relatives is probably older."""
    if neighbor.relationship.is_same:
        return "the same"
    other = next(x.unpack(x.names.index(neighbor.name)) for x in packed if neighbor.name in x.names)
    return "parent" if fingerprints.tails(other) <= fingerprints.tails(network) else "child"
