"""`sane-plugins heads fit`: fit property heads to zoos."""

from __future__ import annotations

from pathlib import Path

import click

from sane_plugins import features, properties, zoo
from sane_plugins.architectures import Trust
from sane_plugins.cli.console import command_options, note, open_host, progress_bars
from sane_plugins.cli.heads.show import print_heads
from sane_plugins.cli.options.outputs import OutputFile, require_free_outputs
from sane_plugins.cli.options.trust import trust_options

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("zoos", metavar="ZOO...", type=_FILE, nargs=-1, required=True)
@click.option("-o", "--output", type=OutputFile(), required=True, help="Where to write the heads.")
@click.option(
    "--property",
    "names",
    multiple=True,
    help="A column of the zoos, of numbers or of names; repeat for more. By default test_accuracy, gap and"
    " epoch as far as there are, or else all columns.",
)
@click.option(
    "--features",
    "feature_set",
    type=click.Choice(["auto", "sane", "statistics", "both"]),
    default="auto",
    show_default=True,
    help="What is read; auto chooses by cross-validation.",
)
@click.option("--sane", type=_FILE, help="A SANE of your own, from 'pretrain'.")
@click.option("--seed", default=0, show_default=True, help="Of the folds of cross-validation.")
@click.option("--force", is_flag=True, help="Replace the output file if it exists.")
@trust_options
@command_options
def fit(
    zoos: tuple[Path, ...],
    output: Path,
    names: tuple[str, ...],
    feature_set: str,
    sane: Path | None,
    seed: int,
    force: bool,
    trust: Trust,
    as_json: bool,
) -> None:
    """Fit a head per property to zoos whose networks have it."""
    options = properties.FitOptions(properties=names or None, features=feature_set, seed=seed)
    host = open_host()
    require_free_outputs(host, [output], force, others=[*zoos, sane])
    with progress_bars(host):
        opened = [zoo.Zoo.open(folder, trust) for folder in zoos]
        model = features.load_model(features.EncodeOptions(sane=sane))
        shipped = properties.embedded_heads()
        fitted = properties.fit_heads(opened, model, options, host.report, shipped)
    properties.save_heads(fitted.heads, output)
    for text in fitted.notes:
        note(f"Note: {text}.")
    print_heads(list(fitted.heads.values()), as_json)
    note(f"Written to {output}; use it with 'sane-plugins predict --heads'.")
