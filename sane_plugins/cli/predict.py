"""`sane-plugins predict`: properties of networks, from their weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from sane_plugins import properties
from sane_plugins.cli.console import (
    command_options,
    note,
    open_host,
    print_json,
    print_table,
    progress_bars,
)
from sane_plugins.cli.factories import Opener, factory_option
from sane_plugins.cli.heads.show import best_scores
from sane_plugins.cli.sources import process_each, require_none_failed
from sane_plugins.runtime import require_device

_FILE = click.Path(path_type=Path)
_COLUMNS = ("source", "property", "value", "interval or set", "known kind")


@click.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--property", "names", multiple=True, help="Only this property; repeat for more.")
@click.option("--heads", type=_FILE, help="Heads of your own, from 'heads fit'.")
@click.option("--sane", type=_FILE, help="The SANE that they were fitted with, if another.")
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@factory_option
@command_options
def predict(
    sources: tuple[str, ...],
    names: tuple[str, ...],
    heads: Path | None,
    sane: Path | None,
    device: str,
    factories: tuple[str, ...],
    as_json: bool,
) -> None:
    """Predict accuracy, generalisation gap and training progress from weights alone."""
    require_device(device)
    host = open_host()
    open_source = Opener(host, factories)
    available = host.property_heads() if heads is None else properties.load_heads(heads)
    options = properties.PredictOptions(
        properties=names or None, sane=sane, heads=heads, device=device
    )
    with progress_bars(host):
        predictions, failed = process_each(
            sources, lambda source: host.predict(open_source(source), options)
        )
    open_source.tell_recognized()
    if as_json:
        print_json(
            {
                source: {
                    name: {**vars(estimate), "recognized": open_source.recognized.get(source, ())}
                    for name, estimate in estimates.items()
                }
                for source, estimates in predictions.items()
            }
        )
    else:
        _print_estimates(predictions, available)
    require_none_failed(failed)


def _print_estimates(
    predictions: Mapping[str, Mapping[str, properties.AnyEstimate]],
    heads: Mapping[str, properties.AnyHead],
) -> None:
    """Print a table of estimates, and notes on the heads that made them."""
    rows = [
        _row(source, x) for source, by_property in predictions.items() for x in by_property.values()
    ]
    print_table("predicted from weights", _COLUMNS, rows)
    estimates = [x for by_property in predictions.values() for x in by_property.values()]
    used = {x.property for x in estimates}
    for name, head in heads.items():
        if name in used:
            note(f"Note: {name} {_describe_head(head)}.")
    if not all(x.in_distribution for x in estimates):
        note(
            "Note: 'no' means unlike every network that the head was fitted on: do not rely on it."
        )


def _row(source: str, estimate: properties.AnyEstimate) -> tuple[str, ...]:
    if isinstance(estimate, properties.CategoryEstimate):
        value = f"{estimate.value} ({estimate.probabilities[estimate.value]:.0%})"
        region = ", ".join(estimate.set)
    else:
        low, high = estimate.interval
        value = f"{estimate.value:.3f} {estimate.unit}".strip()
        region = f"{low:.3f} to {high:.3f}"
    known = "yes" if estimate.in_distribution else "no"
    return source, estimate.property, value, f"{region} ({estimate.coverage:.0%})", known


def _describe_head(head: properties.AnyHead) -> str:
    """Return which features a head reads, and the cross-validation score of each set of features."""
    scores = ", ".join(f"{name} {score:.2f}" for name, score in best_scores(head.scores).items())
    return f"is read from {head.features} (cross-validated {head.score}: {scores})"
