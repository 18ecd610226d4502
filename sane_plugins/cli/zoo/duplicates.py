"""`sane-plugins zoo duplicates`: networks of a zoo that hold the same weights."""

from __future__ import annotations

from pathlib import Path

import click

from sane_plugins import fingerprints
from sane_plugins.cli.console import (
    command_options,
    open_host,
    print_json,
    print_line,
    print_table,
    progress_bars,
)
from sane_plugins.cli.options.among import read_zoo

_OF_VALUES = 32  # digits of a digest that tell the values, whatever their names


@click.command()
@click.argument("folder", metavar="ZOO", type=click.Path(path_type=Path))
@command_options
def duplicates(folder: Path, as_json: bool) -> None:
    """List groups of networks that hold the same weights, but for names, precision and channel order.

    Two networks are the same if their weights differ by less than 0.4 % of their size. Rounding to half
    precision changes less, quantising and fine-tuning more.

    Example: sane-plugins zoo duplicates my-zoo
    """
    host = open_host()
    with progress_bars(host):
        among = read_zoo(host, folder)
        many = fingerprints.ManyNetworks(among.packed)
        groups = many.duplicates(host.report)
    among.tell_skipped()
    digests = {key: entry.digest[:_OF_VALUES] for key, entry in among.entries.items()}
    found = [[many.names[i] for i in numbers] for numbers in groups]
    identical = [
        bool(digests[names[0]]) and len({digests[name] for name in names}) == 1 for names in found
    ]
    if as_json:
        groups_found = [
            {"networks": names, "identical": same}
            for names, same in zip(found, identical, strict=True)
        ]
        print_json({"compared": len(many), "duplicates": groups_found})
        return
    if not found:
        print_line(f"No two of {len(many)} networks hold the same weights.")
        return
    rows = [
        (i, name, "identical values" if same else "differ by less than 0.4 %")
        for i, (names, same) in enumerate(zip(found, identical, strict=True), 1)
        for name in names
    ]
    print_table(f"duplicates among {len(many)} networks", ("group", "network", "weights"), rows)
