"""`inspect`: what a network is made of, how much of it was read, and what was not and why."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sane_plugins.cli.console import (
    command_options,
    note,
    open_host,
    print_json,
    progress_bars,
)
from sane_plugins.errors import SourceError

if TYPE_CHECKING:
    from sane_plugins.inspection import LayerStats, Survey


@click.command()
@click.argument("source")
@click.option("--all-layers", is_flag=True, help="List every layer, however many there are.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Draw norms, weights and coverage into this file (.png, .pdf, .svg).",
)
@click.option("--force", is_flag=True, help="Replace the picture if it exists.")
@click.option(
    "--fail-under",
    metavar="PERCENT",
    type=click.FloatRange(0, 100),
    help="Exit with 1 where less than this share of the parameters could be read.",
)
@click.option(
    "--width", default=128, show_default=True, type=click.IntRange(1), help="Token width D."
)
@command_options
def inspect(
    source: str,
    all_layers: bool,
    plot: Path | None,
    force: bool,
    fail_under: float | None,
    width: int,
    as_json: bool,
) -> None:
    """Show a network's layers, how much of it was read, what was not and why, and what is zero."""
    from sane_plugins.inspection import survey_network

    if plot is not None:
        from sane_plugins.inspection import require_plot, save_plot

        require_plot(plot, force)
    host = open_host()
    graph = host.open(source)
    with progress_bars(host):
        found = survey_network(graph, host.report)
        if plot is not None:
            save_plot(graph, found, plot, width)
    tokens = len(graph.token_layout(width))
    if as_json:
        print_json(_told(found, tokens, width))
    else:
        from sane_plugins.cli.inspect_text import print_report

        print_report(found, tokens, width, all_layers)
    if plot is not None:
        note(f"Picture written to {plot}.")
    _require(found, fail_under)


def _require(found: Survey, least: float | None) -> None:
    from sane_plugins.inspection import percent

    if least is not None and 100 * found.coverage < least:
        raise SourceError(
            found.source,
            f"{percent(found.coverage)} of its parameters could be read",
            f"--fail-under asks for {least:g} %",
            "see what could not be read, and why",
        )


def _told(found: Survey, tokens: int, width: int) -> dict[str, Any]:
    """Return all figures for programs."""
    zeros = found.zeros / max(found.parameters, 1)
    return {
        "source": found.source,
        "container": found.container,
        "parameters": found.parameters,
        "coverage": found.coverage,
        "dtypes": found.dtypes,
        "layers": [_layer(layer, found) for layer in found.layers],
        "converted": [asdict(x) for x in found.converted],
        "missed": [asdict(x) for x in found.missed],
        "skipped": [{"reason": x.reason, "keys": x.keys} for x in found.skipped],
        "sparsity": {"zeros": found.zeros, "share": zeros, **asdict(found.structure)},
        "not_finite": found.unusable,
        "topology": found.topology != "unknown",
        "unconnected": found.unconnected,
        "permutation_groups": found.groups,
        "permutable_channels": found.channels,
        "tokens": tokens,
        "token_width": width,
        "untouched": {key: x.reason for x in (*found.missed, *found.skipped) for key in x.keys},
        "ties": dict(found.ties),
        "notes": list(found.notes),
    }


def _layer(layer: LayerStats, found: Survey) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "parameters": layer.parameters,
        "share": layer.parameters / found.total,
        "rms": layer.rms,
        "bias_rms": layer.bias_rms,
        "zeros": layer.zeros,
        "shared": layer.shared,
        "tensors": [
            {
                "key": x.key,
                "role": x.role,
                "shape": x.shape,
                "dtype": x.dtype,
                "rms": x.rms,
                "zeros": x.zeros,
                "not_finite": x.unusable,
                "converted": x.converted or None,
                **asdict(x.channels),
            }
            for x in layer.tensors
        ],
    }
