"""`sane-plugins zoo tree`: families of networks that were tuned from each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from sane_plugins import fingerprints
from sane_plugins.cli.console import (
    command_options,
    note,
    open_host,
    print_json,
    print_line,
    progress_bars,
)
from sane_plugins.cli.options.among import read_zoo


@click.command()
@click.argument("folder", metavar="ZOO", type=click.Path(path_type=Path))
@command_options
def tree(folder: Path, as_json: bool) -> None:
    """Show which networks of a zoo are relatives, as trees: each below the one it was probably tuned from.

    Fewer than one stranger in hundred gets into a family; who came first is a guess, from the tails of the
    weights, which grow in training. Checkpoints of one run, and networks trained from one random seed, are
    families too.

    Example: sane-plugins zoo tree my-zoo
    """
    host = open_host()
    with progress_bars(host):
        among = read_zoo(host, folder)
        many = fingerprints.ManyNetworks(among.packed)
        found = fingerprints.families(many, host.report)
    among.tell_skipped()
    inside = {member.name for family in found for member in family.members}
    alone = [name for name in many.names if name not in inside]
    if as_json:
        print_json(
            {
                "families": [[_described(x) for x in family.members] for family in found],
                "alone": alone,
            }
        )
        return
    for family in found:
        _print_branch(family.members, family.members[0], "", "")
        print_line("")
    if found:
        note("Who came first is a guess: see the page on relatives in the documentation.")
    print_line(f"{len(found)} families of {len(inside)} networks; {len(alone)} have no relative.")


def _described(member: fingerprints.Member) -> dict[str, object]:
    relationship = member.relationship
    return {
        "name": member.name,
        "parent": member.parent or None,
        "similarity": relationship.similarity if relationship else None,
        "same": bool(relationship and relationship.is_same),
    }


def _print_branch(
    members: Sequence[fingerprints.Member], member: fingerprints.Member, lead: str, below: str
) -> None:
    relationship = member.relationship
    how = ""
    if relationship is not None:
        how = "  (the same)" if relationship.is_same else f"  {relationship.similarity:.3f}"
    print_line(f"{lead}{member.name}{how}")
    children = [x for x in members if x.parent == member.name]
    for i, child in enumerate(children):
        is_last = i + 1 == len(children)
        lead, deeper = ("`-- ", "    ") if is_last else ("|-- ", "|   ")
        _print_branch(members, child, below + lead, below + deeper)
