"""`sane-plugins zoo add`: add a folder of checkpoints to a zoo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from sane_plugins import architectures, zoo
from sane_plugins.cli.console import (
    command_options,
    note,
    open_host,
    print_json,
    print_table,
    progress_bars,
)
from sane_plugins.cli.options.trust import trust_option, typed_trust
from sane_plugins.cli.zoo.settings import parse_settings
from sane_plugins.errors import UsageError

_FOLDER = click.Path(path_type=Path)
_TORCHVISION = "torchvision:"
_MAX_LISTED = 20  # files of a kind; JSON has all


@click.command()
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option("-o", "--output", type=_FOLDER, required=True, help="The zoo's folder, new or not.")
@click.option(
    "--factory",
    help="What builds them: package.module:function, torchvision:NAME, small_cnn,"
    " wide_cnn, mlp, resnet or vit.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="An argument of the factory; repeat for more.",
)
@trust_option
@click.option(
    "--network-pattern",
    default="",
    metavar="REGEX",
    help="Finds the network in a path: its group 'network', or its first, or all.",
)
@click.option(
    "--no-runs",
    is_flag=True,
    help="Each file is a network of its own, whatever epoch its name tells.",
)
@command_options
def add(
    folder: Path,
    output: Path,
    factory: str | None,
    settings: tuple[str, ...],
    trust: bool,
    network_pattern: str,
    no_runs: bool,
    as_json: bool,
) -> None:
    """Add every network below DIR to a zoo; each is kept once, whatever form it is stored in.

    Files whose names differ by the number of an epoch, step or checkpoint alone are one network's
    checkpoints, so that splits keep them on one side. The zoo holds copies; nothing in it is replaced.
    Zoos below DIR may name functions that build their networks: other than our own architectures, only the
    one in --factory is called, unless --trust is given.

    Example: sane-plugins zoo add runs/ -o my-zoo --factory my_package.models:build --set classes=10
    """
    host = open_host()
    by_name = zoo.name_by_file if no_runs else zoo.name_by_number
    run_name = zoo.name_by_pattern(network_pattern) if network_pattern else by_name
    built_by = _factory(factory, settings)
    options = zoo.AddOptions(
        factory=built_by, run_name=run_name, trust=typed_trust([built_by.get("name")], trust)
    )
    with progress_bars(host):
        result = zoo.add_networks(folder, output, host.open, options, host.report)
    _print(result, zoo.Zoo.open(output), as_json)


def _factory(name: str | None, settings: Sequence[str]) -> dict[str, Any]:
    """Return a factory's name and arguments as a zoo stores them; an empty dict if none is given.

    Raises `UsageError` for a factory that cannot be built, before any file is read.
    """
    if name is None:
        if settings:
            raise UsageError(
                f"--set {settings[0]}",
                "there is no --factory",
                "it is an argument of the factory",
                "add --factory package.module:function",
            )
        return {}
    if name.startswith(_TORCHVISION):
        name = f"torchvision.models:{name.removeprefix(_TORCHVISION)}"
    arguments = parse_settings(settings, ("name",), "--factory names it", "classes=10")
    factory = {"name": architectures.family_name(name) or name, **arguments}
    architectures.build(factory, typed_trust([factory["name"]], everything=False))
    return factory


def _print(result: zoo.Added, extended: zoo.Zoo, as_json: bool) -> None:
    """Print how many files were added or left out, and on stderr which and why."""
    if as_json:
        totals = {"networks": len(extended.networks), "checkpoints": len(extended)}
        print_json({"name": extended.name, **totals, **asdict(result)})
        return
    rows = [
        ("added", len(result.added)),
        ("in the zoo already", len(result.already)),
        ("equal to another, left out", len(result.equal)),
        ("not read", len(result.unread)),
        ("networks now", len(extended.networks)),
        ("checkpoints now", len(extended)),
    ]
    print_table(extended.name, ("", "files"), rows)
    _note_files("Left out, equal", {key: f"it is {twin}" for key, twin in result.equal.items()})
    _note_files("Not read", result.unread)
    _note_files("Added without a factory", result.unbuilt)
    _note_files(
        "Read in part",
        {source: f"{share:.1%} of its weights" for source, share in result.partial.items()},
    )
    if result.given_factory:
        note(f"{len(result.given_factory)} networks that were in the zoo can be built now.")


def _note_files(title: str, reasons: Mapping[str, str]) -> None:
    """List the first files of a kind on stderr, each with its reason."""
    for source, reason in list(reasons.items())[:_MAX_LISTED]:
        # A reason that is a sentence names the file itself.
        note(f"{title}: {reason}" if reason.endswith(".") else f"{title}: {source}: {reason}")
    if len(reasons) > _MAX_LISTED:
        note(f"{title}: {len(reasons) - _MAX_LISTED} more; --json lists all.")
