"""`diff`: what changed between two networks, layer by layer, and what that makes of the pair."""

from __future__ import annotations

from pathlib import Path

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
from sane_plugins.cli.options.outputs import OutputFile, require_free_outputs
from sane_plugins.cli.options.trust import forget_working_directory_style

# As `sane_plugins.comparison.VerdictKind` has them; torch is not loaded to show help.
_VERDICTS = (
    "identical",
    "same",
    "rounded",
    "scaled",
    "quantized",
    "pruned",
    "low-rank",
    "fine-tuned",
    "widened",
    "partial",
    "unrelated",
)
_DIFFERENT = 1


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--all-layers", is_flag=True, help="A row for every layer.")
@click.option(
    "--exit-code",
    is_flag=True,
    help="Exit with 1 unless both hold the same weights (verdicts identical and same), like git diff.",
)
@click.option(
    "--accept",
    multiple=True,
    type=click.Choice(_VERDICTS),
    help="Exit with 1 unless the verdict is this one; repeat for more.",
)
@click.option(
    "--plot",
    type=OutputFile(),
    help="Draw how far each layer moved into this file (.png, .pdf, .svg).",
)
@click.option("--force", is_flag=True, help="Replace the picture if it exists.")
@factory_option
@command_options
def diff(
    a: str,
    b: str,
    all_layers: bool,
    exit_code: bool,
    accept: tuple[str, ...],
    plot: Path | None,
    force: bool,
    factories: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say what changed from network A to network B, whatever their names, order, precision and container.

    Layers are paired by what they hold. Of each: the same, rounded, quantised, pruned, changed (how far, in
    how many directions), replaced, or in one only; and a verdict on the pair. Weights alone are compared.
    """
    from sane_plugins.comparison import (
        SAME_WEIGHTS,
        compare,
        comparison_record,
        judge,
        summary_lines,
        table_of_layers,
        verdict_line,
    )

    if plot is not None:
        from sane_plugins.inspection import require_plot

        require_plot(plot, force)
        forget_working_directory_style()
    host = open_host()
    require_free_outputs(host, [plot], force, networks=[a, b])
    opener = Opener(host, factories)
    graphs = opener(a), opener(b)
    with progress_bars(host):
        comparison = compare(*graphs, host.report)
    verdict = judge(comparison)
    if plot is not None:
        from sane_plugins.comparison import save_comparison_plot

        save_comparison_plot(comparison, verdict, plot)
    if as_json:
        print_json(comparison_record(comparison, verdict))
    else:
        for name, network in (("A", comparison.a), ("B", comparison.b)):
            print_line(
                f"{name}: {network.source} ({network.container}), {network.parameters:,} parameters"
                f" in {network.tensors:,} tensors"
            )
        print_line(verdict_line(comparison, verdict))
        for line in summary_lines(comparison, verdict):
            print_line(line)
        print_table(*table_of_layers(comparison, all_layers))
    if plot is not None:
        note(f"Picture written to {plot}.")
    same = {kind.value for kind in SAME_WEIGHTS} if exit_code else set()
    if (exit_code or accept) and verdict.kind.value not in same | set(accept):
        raise click.exceptions.Exit(_DIFFERENT)
