"""`sane-plugins predict`: properties of networks, from their weights alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sane_plugins import properties
from sane_plugins.cli.console import (
    command_options,
    note,
    open_host,
    print_json,
    print_lines,
    print_table,
    progress_bars,
)
from sane_plugins.cli.heads.show import best_scores
from sane_plugins.cli.options.estimates import UNLIKE, force_option, tell_caveats, to_cell
from sane_plugins.cli.options.factories import Opener, factory_option
from sane_plugins.cli.options.heads_options import heads_options
from sane_plugins.cli.options.sources import networks_of, process_networks, require_none_failed
from sane_plugins.errors import SaneError, UsageError
from sane_plugins.runtime import require_device

if TYPE_CHECKING:  # to name `properties.Rank` loads numpy
    _Predictions = Mapping[str, Mapping[str, properties.AnyEstimate]]
    _Ranks = Mapping[str, Mapping[str, properties.Rank]]
    """Ranks of networks of unknown kinds, by property and source."""


@click.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--property", "names", multiple=True, help="Only this property; repeat for more.")
@click.option("--sort", metavar="PROPERTY", help="Highest first; -PROPERTY: lowest first.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the result as CSV.")
@force_option
@heads_options
@factory_option
@command_options
def predict(
    sources: tuple[str, ...],
    names: tuple[str, ...],
    sort: str | None,
    as_csv: bool,
    force: bool,
    heads: Path | None,
    like: str | None,
    sane: Path | None,
    device: str,
    factories: tuple[str, ...],
    as_json: bool,
) -> None:
    """Predict accuracy, generalisation gap and training progress from weights alone.

    SOURCE may be a folder or a zoo: all networks in it. A row per network: value and interval or set of each
    property. Of a network unlike all that a head was fitted on, its rank among those of the same structure
    is told, where there are others, and no value without --force. A network that cannot be read is told in
    its row, and in JSON as its "error"; the command then exits with 1.

    Example: sane-plugins predict runs/ --sort test_accuracy
    """
    if as_csv and as_json:
        raise UsageError(
            "predict", "both --csv and --json are given", "a result has one form", "leave out one"
        )
    require_device(device)
    host = open_host()
    open_source = Opener(host, factories)
    available = host.property_heads() if heads is None else properties.load_heads(heads)
    if sort is not None:
        _require_property(sort.removeprefix("-"), names or tuple(available))
    if like is not None:
        properties.heads_like(available, like)  # said once, and not of each network
    options = properties.PredictOptions(
        properties=names or None, sane=sane, heads=heads, device=device, like=like
    )
    with progress_bars(host):
        found, errors = process_networks(
            networks_of(sources, open_source, factories),
            lambda graph: host.predict(graph, options),
            host.report,
            "predict properties",
        )
    open_source.tell_recognized()
    ranks = properties.rank_all(found)
    predictions: _Predictions = found if sort is None else _sorted(found, sort, ranks, force)
    columns = [name for name in names or available if any(name in x for x in found.values())]
    columns += [name for x in found.values() for name in x if name not in columns]
    if as_json:
        print_json(_to_json(predictions, errors, open_source.recognized, ranks, force))
    elif as_csv:
        print_lines(_to_csv(predictions, errors, tuple(dict.fromkeys(columns)), ranks, force))
    elif found:
        _print(predictions, errors, tuple(dict.fromkeys(columns)), available, ranks, force)
    tell_caveats(found)
    if errors and len(found) + len(errors) == 1:
        raise click.exceptions.Exit(1)  # one sentence was said of it
    require_none_failed(errors)


def _require_property(name: str, known: Sequence[str]) -> None:
    """Raise `UsageError` for a property that no column has."""
    if name not in known:
        raise UsageError(
            f"--sort {name}",
            "no such property is predicted",
            f"one of {', '.join(sorted(known))} is needed",
            "check the name",
        )


def _sorted(predictions: _Predictions, sort: str, ranks: _Ranks, force: bool) -> _Predictions:
    """Return predictions in the order of a property: highest first, or, with a minus, lowest first.

    Networks whose value is withheld follow, by rank.
    """
    name, is_descending = sort.removeprefix("-"), not sort.startswith("-")
    told = [
        source
        for source, x in predictions.items()
        if name in x and not properties.is_withheld(x[name], force)
    ]
    ordered = sorted(told, key=lambda x: predictions[x][name].value, reverse=is_descending)
    ranked = [source for source in ranks.get(name, {}) if source not in told]
    ranked.sort(key=lambda x: ranks[name][x].place, reverse=not is_descending)
    return {source: predictions[source] for source in (*ordered, *ranked)} | {**predictions}


def _to_json(
    predictions: _Predictions,
    errors: Mapping[str, SaneError],
    recognized: Mapping[str, tuple[str, ...]],
    ranks: _Ranks,
    force: bool,
) -> dict[str, dict[str, Any]]:
    """Return by network its estimates by property, or its error."""
    told: dict[str, dict[str, Any]] = {
        source: {
            name: properties.estimate_record(estimate, force=force, rank=ranks[name].get(source))
            | {"recognized": recognized.get(source, ())}
            for name, estimate in estimates.items()
        }
        for source, estimates in predictions.items()
    }
    return told | {source: {"error": str(error)} for source, error in errors.items()}


def _to_csv(
    predictions: _Predictions,
    errors: Mapping[str, SaneError],
    columns: Sequence[str],
    ranks: _Ranks,
    force: bool,
) -> Iterable[str]:
    """Yield a header and a line per network, numbers in full; a set is joined by blanks."""
    header = ["source"]
    parts = ("", "_low", "_high", "_set", "_known_kind", "_rank")
    for name in columns:
        header += [f"{name}{part}" for part in parts]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*header, "error"])
    for source, estimates in predictions.items():
        cells: list[object] = [source]
        for name in columns:
            rank = ranks[name].get(source)
            cells += [*_csv_cells(estimates.get(name), force), rank.place if rank else ""]
        writer.writerow([*cells, ""])
    for source, error in errors.items():
        writer.writerow([source, *[""] * (len(header) - 1), str(error)])
    return text.getvalue().splitlines()


def _csv_cells(estimate: properties.AnyEstimate | None, force: bool) -> list[object]:
    if estimate is None:
        return [""] * 5
    if properties.is_withheld(estimate, force):
        return ["", "", "", "", estimate.in_distribution]
    if isinstance(estimate, properties.CategoryEstimate):
        return [estimate.value, "", "", " ".join(estimate.set), estimate.in_distribution]
    return [estimate.value, *estimate.interval, "", estimate.in_distribution]


def _print(
    predictions: _Predictions,
    errors: Mapping[str, SaneError],
    columns: Sequence[str],
    heads: Mapping[str, properties.AnyHead],
    ranks: _Ranks,
    force: bool,
) -> None:
    """Print a row per network and a column per property, and notes on the heads that made them."""
    rows = [
        (source, *(to_cell(x.get(name), force, ranks[name].get(source)) for name in columns))
        for source, x in predictions.items()
    ]
    rows += [(source, "unreadable", *[""] * (len(columns) - 1)) for source in errors]
    print_table("predicted from weights", ("source", *columns), rows)
    estimates = [x for by_property in predictions.values() for x in by_property.values()]
    told = [x for x in estimates if not properties.is_withheld(x, force)]
    for coverage in sorted({x.coverage for x in told}):
        note(f"Note: in brackets, what holds the true value in {coverage:.0%} of cases.")
    for name, head in heads.items():
        if name in {x.property for x in estimates}:
            note(f"Note: {name} {_describe_head(head)}.")
    if not all(x.in_distribution for x in estimates):
        advice = _advice(force, any(ranks.values()))
        note(f"Note: '{UNLIKE}' means unlike every network that the head was fitted on: {advice}.")


def _advice(force: bool, is_ranked: bool) -> str:
    """Return what to make of networks of an unknown kind, given whether any of them has a rank."""
    if force:
        return "do not rely on it"
    if is_ranked:
        return "only its rank among networks of its structure is told; --force tells a guess"
    return "no value can be told, and one network alone of its structure has no rank; --force tells a guess"


def _describe_head(head: properties.AnyHead) -> str:
    """Return which features a head reads, and the cross-validation score of each set of features."""
    scores = ", ".join(f"{name} {score:.2f}" for name, score in best_scores(head.scores).items())
    unit = getattr(head, "unit", "")
    measured = f", in {unit}" if unit else ""
    return f"is read from {head.features}{measured} (cross-validated {head.score}: {scores})"
