"""`inspect`: what a network is made of, how much of it was read, and what was not and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sane_plugins.cli.console import (
    command_options,
    note,
    open_host,
    print_json,
    print_line,
    print_table,
    progress_bars,
)
from sane_plugins.cli.options.factories import Opener, factory_option
from sane_plugins.cli.options.numbers import FiniteRange
from sane_plugins.cli.options.outputs import OutputFile, require_free_outputs
from sane_plugins.cli.options.trust import forget_working_directory_style
from sane_plugins.errors import SourceError

if TYPE_CHECKING:
    from sane_plugins.inspection import Survey


@click.command()
@click.argument("source")
@click.option("--all-layers", is_flag=True, help="List every layer, however many there are.")
@click.option(
    "--textconv",
    "is_plain",
    is_flag=True,
    help="Print a plain line per tensor, without the file's name and place: for git's diff.*.textconv.",
)
@click.option(
    "--plot",
    type=OutputFile(),
    help="Draw norms, weights and coverage into this file (.png, .pdf, .svg).",
)
@click.option("--force", is_flag=True, help="Replace the picture if it exists.")
@click.option(
    "--fail-under",
    metavar="PERCENT",
    type=FiniteRange(0, 100),
    help="Exit with 1 where less than this share of the parameters could be read.",
)
@click.option(
    "--width", default=128, show_default=True, type=click.IntRange(1), help="Token width D."
)
@factory_option
@command_options
def inspect(
    source: str,
    all_layers: bool,
    is_plain: bool,
    plot: Path | None,
    force: bool,
    fail_under: float | None,
    width: int,
    factories: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show a network's layers, how much of it was read, what was not and why, and what is zero."""
    from sane_plugins.inspection import (
        MAX_TABLE_LAYERS,
        layer_table,
        plain_lines,
        summary_lines,
        survey_network,
        survey_record,
    )

    if plot is not None:
        from sane_plugins.inspection import require_plot, save_plot

        require_plot(plot, force)
        forget_working_directory_style()
    host = open_host()
    require_free_outputs(host, [plot], force, networks=[source])
    graph = Opener(host, factories)(source)
    with progress_bars(host):
        survey = survey_network(graph, host.report, width)
        if plot is not None:
            save_plot(graph, survey, plot)
    if as_json:
        print_json(survey_record(survey))
    elif is_plain:
        for line in plain_lines(graph, survey):
            print_line(line)
    else:
        print_table(*layer_table(survey, None if all_layers else MAX_TABLE_LAYERS))
        for line in summary_lines(survey):
            print_line(line)
    if plot is not None:
        note(f"Picture written to {plot}.")
    if fail_under is not None:
        _require_coverage(survey, fail_under)


def _require_coverage(survey: Survey, min_percent: float) -> None:
    from sane_plugins.inspection import percent

    if 100 * survey.coverage < min_percent:
        raise SourceError(
            survey.source,
            f"{percent(survey.coverage)} of its parameters could be read",
            f"--fail-under asks for {min_percent:g} %",
            "see what could not be read, and why",
        )
