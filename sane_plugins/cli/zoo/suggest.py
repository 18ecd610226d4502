"""`sane-plugins zoo suggest`: which networks of a zoo to measure next."""

from __future__ import annotations

from pathlib import Path

import click

from sane_plugins import features, properties, zoo
from sane_plugins.architectures import Trust
from sane_plugins.cli.console import (
    command_options,
    note,
    open_host,
    print_json,
    print_table,
    progress_bars,
)
from sane_plugins.cli.options.trust import trust_options

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("folder", metavar="ZOO", type=_PATH)
@click.option(
    "-n",
    "--count",
    default=20,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    help="How many to choose.",
)
@click.option(
    "--property",
    "name",
    default="test_accuracy",
    show_default=True,
    help="What is to be measured; networks that have it are known already.",
)
@click.option(
    "--features",
    "feature_set",
    type=click.Choice(["statistics", "sane", "both"]),
    default="statistics",
    show_default=True,
    help="What the head will read.",
)
@click.option(
    "--criterion",
    type=click.Choice(["bait", "determinant", "farthest", "centres"]),
    default="bait",
    show_default=True,
    help="How they are chosen.",
)
@click.option("--sane", type=_PATH, help="A SANE of your own, from 'pretrain'.")
@trust_options
@command_options
def suggest(
    folder: Path,
    count: int,
    name: str,
    feature_set: str,
    criterion: str,
    sane: Path | None,
    trust: Trust,
    as_json: bool,
) -> None:
    """Choose the unmeasured networks of a zoo from which a head would learn most.

    Nothing is run: features of the weights decide, and what has the property already. They are computed
    once, and kept in the zoo's folder.

    Example: sane-plugins zoo suggest my-zoo -n 20 --property test_accuracy
    """
    options = properties.SuggestOptions(
        property=name, count=count, features=feature_set, criterion=criterion
    )
    host = open_host()
    with progress_bars(host):
        opened = zoo.Zoo.open(folder, trust)
        needs_sane = "sane" in properties.FEATURES[feature_set]
        model = features.load_model(features.EncodeOptions(sane=sane)) if needs_sane else None
        found = properties.suggest_networks(opened, options, model, host.report)
    if as_json:
        print_json(
            {
                "property": name,
                "measured": found.measured,
                "unmeasured": found.unmeasured,
                "criterion": criterion,
                "features": feature_set,
                "suggested": [
                    {"network": x.network, "checkpoint": x.checkpoint, "source": x.source}
                    for x in found.entries
                ],
                "notes": found.notes,
            }
        )
        return
    rows = [(i, x.network, x.checkpoint) for i, x in enumerate(found.entries, 1)]
    print_table("measure next", ("", "network", "checkpoint"), rows)
    total = found.measured + found.unmeasured
    note(f"Note: {found.measured} of {total} checkpoints have '{name}' so far.")
    for text in found.notes:
        note(f"Note: {text}.")
    if len(found.entries) < count:
        note("Note: there are no more to choose from.")
