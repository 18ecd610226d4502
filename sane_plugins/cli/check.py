"""`sane-plugins check`: which networks are broken, never trained or half-loaded; for people and for CI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sane_plugins import health
from sane_plugins.cli.console import (
    command_options,
    open_host,
    print_json,
    print_line,
    print_table,
    progress_bars,
)
from sane_plugins.cli.options.factories import Opener, factory_option
from sane_plugins.cli.options.sources import networks_of, process_networks
from sane_plugins.cli.options.trust import typed_trust

if TYPE_CHECKING:
    from sane_plugins.errors import SaneError
    from sane_plugins.host import Host
    from sane_plugins.weights import WeightGraph

_UNHEALTHY = 1
_MOST_NOTES = 20


ignore_option = click.option(
    "--ignore",
    "ignored",
    multiple=True,
    type=click.Choice(health.KINDS),
    metavar="KIND",
    help="A kind of finding that is no fault here; repeat for more.",
)


@click.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option(
    "--zoo",
    "zoo_folder",
    type=click.Path(path_type=Path),
    help="A zoo of healthy networks: layers unlike theirs are faults.",
)
@ignore_option
@factory_option
@command_options
def check(
    sources: tuple[str, ...],
    zoo_folder: Path | None,
    ignored: tuple[str, ...],
    factories: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check networks for what no network in working order has; exit with 1 if one has it.

    SOURCE may be a folder or a zoo: all networks in it. Faults are values that are not finite or huge,
    constant matrices, networks that were never trained or only in part (as after loading with strict=False),
    layers most channels of which carry nothing, and impossible statistics of norms. Notes are what may be
    meant: some dead channels, an untrained classifier behind trained layers, initial weights that sane-init
    wrote, of which it is no fault that they are untrained.

    Example: sane-plugins check runs/ --json
    """
    host = open_host()
    open_source = Opener(host, factories)
    with progress_bars(host):
        reference = None if zoo_folder is None else _reference(host, zoo_folder, factories)
        checked, errors = process_networks(
            networks_of(sources, open_source, factories),
            lambda graph: health.check_network(graph, reference, ignored),
            host.report,
            "check networks",
        )
    if as_json:
        print_json(_to_json(checked, errors))
    else:
        _print(checked, errors)
    if errors or not all(x.is_healthy for x in checked.values()):
        raise click.exceptions.Exit(_UNHEALTHY)


def _reference(host: Host, folder: Path, factories: tuple[str, ...]) -> health.Reference:
    from sane_plugins.progress import Progress
    from sane_plugins.zoo import Zoo

    zoo = Zoo.open(folder, typed_trust(factories, everything=False))

    def graphs() -> Iterator[WeightGraph]:
        for i, entry in enumerate(zoo.entries):
            host.report(Progress(job="read the zoo", done=i, total=len(zoo), note=entry.key))
            yield zoo.graph(entry)

    return health.fit_reference(str(folder), graphs())


def _to_json(
    checked: Mapping[str, health.Health], errors: Mapping[str, SaneError]
) -> dict[str, dict[str, Any]]:
    """Return by network its verdict and findings, or the error of one that could not be read."""
    told = {
        name: {
            "verdict": result.verdict,
            "healthy": result.is_healthy,
            "findings": [vars(finding) for finding in result.findings],
        }
        for name, result in checked.items()
    }
    return told | {
        name: {"verdict": "unreadable", "healthy": False, "error": str(error)}
        for name, error in errors.items()
    }


def _print(checked: Mapping[str, health.Health], errors: Mapping[str, SaneError]) -> None:
    """Print a verdict per network, then what was found in those that have faults, then notes."""
    rows = [(name, result.verdict) for name, result in checked.items()]
    rows += [(name, "unreadable") for name in errors]
    print_table("health", ("network", "verdict"), rows)
    notes = []
    for name, result in checked.items():
        for finding in result.findings:
            line = f"{name}: {finding.text}."
            if finding in result.faults:
                print_line(line)
            else:
                notes.append(f"Note: {line}")
    for line in notes[:_MOST_NOTES]:
        print_line(line)
    if len(notes) > _MOST_NOTES:
        print_line(f"Note: {len(notes) - _MOST_NOTES} more; --json lists all.")
