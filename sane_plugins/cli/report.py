"""`sane-plugins report`: one page on all networks of a folder or a zoo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sane_plugins import properties, zoo_report
from sane_plugins.cli.console import (
    command_options,
    note,
    open_host,
    print_json,
    progress_bars,
)
from sane_plugins.cli.options.among import Among, read_zoo
from sane_plugins.cli.options.factories import Opener, factory_option
from sane_plugins.cli.options.heads_options import heads_options
from sane_plugins.cli.options.outputs import OutputFile, require_free_outputs
from sane_plugins.cli.options.sources import NamedNetwork, networks_of
from sane_plugins.errors import SourceError, UsageError
from sane_plugins.runtime import require_device

if TYPE_CHECKING:
    from sane_plugins.host import Host

_SUFFIXES = (".html", ".htm")


@click.command()
@click.argument("folder", metavar="DIR")
@click.option("-o", "--output", type=OutputFile(), help="Write the page here (.html).")
@click.option("--force", is_flag=True, help="Replace the output file if it exists.")
@click.option(
    "--property",
    "best_by",
    default="test_accuracy",
    show_default=True,
    help="What the best network is best by.",
)
@click.option("--lower", is_flag=True, help="Less of it is better, as of a loss or a gap.")
@click.option(
    "--force-values",
    is_flag=True,
    help="Tell the value of networks unlike all that a head was fitted on.",
)
@heads_options
@factory_option
@command_options
def report(
    folder: str,
    output: Path | None,
    force: bool,
    best_by: str,
    lower: bool,
    force_values: bool,
    heads: Path | None,
    like: str | None,
    sane: Path | None,
    device: str,
    factories: tuple[str, ...],
    as_json: bool,
) -> None:
    """Report on all networks of a folder or a zoo, on one HTML page that needs no other file.

    It tells the best network, broken ones, duplicates, families and what was tuned from what, predicts
    properties with their intervals, and draws a map. A network that cannot be read is told in its row, and
    the command still exits with 0, unless that holds for all of them; to fail in CI, see 'check'.

    Example: sane-plugins report runs/ -o report.html
    """
    _require_output(output, as_json)
    require_device(device)
    host = open_host()
    open_source = Opener(host, factories)
    networks = networks_of([folder], open_source, factories)
    names = [folder, *(x.name for x in networks)]
    require_free_outputs(host, [output], force, others=[*names, heads, sane])
    available = host.property_heads() if heads is None else properties.load_heads(heads)
    if like is not None:
        properties.heads_like(available, like)  # said once, and not of each network
    options = properties.PredictOptions(sane=sane, heads=heads, device=device, like=like)
    with progress_bars(host):
        among, prefix = _indexed(host, folder)
        reported = [_reported(x, among, prefix) for x in networks]
        _require_property(best_by, available, reported)
        made = zoo_report.report_on(
            folder,
            reported,
            lambda graph: host.predict(graph, options),
            best_by,
            lower=lower,
            force=force_values,
            known=zoo_report.Fingerprinted(
                packed=[x.named([prefix + key for key in x.names]) for x in among.packed],
                skipped={prefix + key: why for key, why in among.skipped.items()},
            ),
            report=host.report,
        )
    open_source.tell_recognized()
    _require_readable(made)
    if output is not None:
        from sane_plugins.atomic_files import write_whole

        page = zoo_report.html_page(made)
        write_whole(output, lambda partial: partial.write_text(page, encoding="utf-8"))
        note(f"Written to {output}.")
    if as_json:
        print_json(zoo_report.to_record(made))


def _require_output(output: Path | None, as_json: bool) -> None:
    """Raise `UsageError` where nothing would be made, or a page under the name of something else."""
    if output is None and not as_json:
        raise UsageError(
            "report",
            "neither -o nor --json is given",
            "the page needs a name",
            "add -o report.html",
        )
    if output is not None and output.suffix.lower() not in _SUFFIXES:
        raise UsageError(
            f"-o {output}", "the page is HTML", "its name must end in .html", "choose another name"
        )


def _indexed(host: Host, folder: str) -> tuple[Among, str]:
    """Return what a zoo keeps of its networks, and what stands before their names; nothing of a folder."""
    from sane_plugins.zoo import is_zoo

    path = Path(folder)
    return (read_zoo(host, path), f"{path}/") if is_zoo(path) else (Among(), "")


def _reported(network: NamedNetwork, among: Among, prefix: str) -> zoo_report.ReportedNetwork:
    return zoo_report.ReportedNetwork(
        name=network.name,
        open=network.open,
        measured=among.properties(network.name.removeprefix(prefix)),
    )


def _require_property(
    name: str,
    heads: Mapping[str, Any],
    networks: Sequence[zoo_report.ReportedNetwork],
) -> None:
    """Raise `UsageError` for a property that no network can be the best by."""
    measured = dict.fromkeys(key for x in networks for key in x.measured)
    known = {*measured, *heads}
    if name not in known:
        raise UsageError(
            f"--property {name}",
            "it is neither predicted nor recorded",
            f"one of {', '.join(sorted(known))} is needed",
            "check the name",
        )
    if name not in measured and isinstance(heads[name], properties.CategoryHead):
        raise UsageError(
            f"--property {name}",
            "its values are names",
            "a property of numbers has a better and a worse",
            "choose another",
        )


def _require_readable(report: zoo_report.ZooReport) -> None:
    """Raise `SourceError` if not one network could be read: such a page says nothing."""
    if not any(row.health is not None for row in report.rows):
        first = next((text for row in report.rows for text in row.errors.values()), "")
        raise SourceError(
            report.source,
            f"none of its {len(report.rows)} networks could be read, the first for this: {first[:300]}",
            "at least one is needed",
            "see the reasons with 'sane-plugins inspect'",
        )
