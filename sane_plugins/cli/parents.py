"""`sane-plugins parents`: which networks does this one come from?"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
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
    from sane_plugins.formats import InitialWeights

_MOST_SHOWN = 3  # prompts


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
    What a file of sane-init itself says of its origin is told beside that: a transfer may change weights too
    much for them to be found again.

    Example: sane-plugins parents unknown.onnx --among my-zoo
    """
    from sane_plugins.formats import initial_weights

    host = open_host()
    with progress_bars(host):
        graph = host.open(source)
        network = fingerprints.fingerprint(graph)
        among = read_among(host, names)
        found = fingerprints.nearest(network, among.packed, count)
    among.tell_skipped()
    relatives = [x for x in found if x.relationship.is_related]
    told = initial_weights(graph)
    lenders = [] if told is None else _compared(told, among.names)
    origins = {x.name: _origin(network, among.packed, x) for x in relatives}
    if as_json:
        print_json(
            {
                "network": source,
                "compared": len(among),
                "skipped": among.skipped,
                "told": told
                and {"chosen": told.chosen, "prompts": told.prompts, "compared": lenders},
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
    if told is not None:
        note(f"Note: {source} says of itself: {_say(told, lenders)}.")
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


def _compared(told: InitialWeights, names: Collection[str]) -> list[str]:
    """Return which of the prompts that a file names are among the networks compared, by their names."""
    paths = {Path(name).resolve() for name in names}

    def is_among(prompt: str) -> bool:
        path = Path(prompt).resolve()
        is_in_zoo = any(prompt.endswith(f":{name}") for name in names)
        return prompt in names or path in paths or path.parent in paths or is_in_zoo

    return [prompt for prompt in told.prompts if is_among(prompt)]


def _say(told: InitialWeights, lenders: list[str]) -> str:
    """Return what a file says of its origin, and whether what lent its weights was compared with it."""
    if not told.prompts:
        return f"{told.describe()}, drawn anew, so that no network lent weights to them"
    shown = ", ".join(told.prompts[:_MOST_SHOWN])
    more = len(told.prompts) - _MOST_SHOWN
    shown += f" and {more} more" if more > 0 else ""
    prompts = "prompt" if len(told.prompts) == 1 else "prompts"
    if len(lenders) == len(told.prompts):
        among = "among the networks compared"
    elif lenders:
        verb = "is" if len(lenders) == 1 else "are"
        among = f"of which {len(lenders)} {verb} among the networks compared"
    else:
        among = "by these names not among the networks compared"
    return f"{told.describe()}, given the {prompts} {shown}, {among}"


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
