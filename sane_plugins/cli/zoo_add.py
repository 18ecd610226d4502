"""`sane-plugins zoo add`: a folder of checkpoints becomes a zoo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sane_plugins.cli.console import (
    command_options,
    note,
    open_host,
    print_json,
    print_table,
    progress_bars,
)
from sane_plugins.cli.settings import read_setting

if TYPE_CHECKING:
    from sane_plugins.zoo import Added, Zoo

_FOLDER = click.Path(path_type=Path)
_TORCHVISION = "torchvision:"
_TOLD = 20  # files of a kind that are listed one by one


@click.command("add")
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
def add_command(
    folder: Path,
    output: Path,
    factory: str | None,
    settings: tuple[str, ...],
    network_pattern: str,
    no_runs: bool,
    as_json: bool,
) -> None:
    """Add every network below DIR to a zoo; each is kept once, whatever form it is stored in.

    Files whose names differ by the number of an epoch, step or checkpoint alone are one network's
    checkpoints, so that splits keep them on one side. The zoo holds copies; nothing in it is replaced.

    Example: sane-plugins zoo add runs/ -o my-zoo --factory my_package.models:build --set classes=10
    """
    from sane_plugins.progress import current
    from sane_plugins.zoo import (
        AddOptions,
        Zoo,
        add_networks,
        name_by_file,
        name_by_number,
        name_by_pattern,
    )

    host = open_host()
    by_name = name_by_file if no_runs else name_by_number
    run_name = name_by_pattern(network_pattern) if network_pattern else by_name
    options = AddOptions(factory=_factory(factory, settings), run_name=run_name)
    with progress_bars(host):
        done = add_networks(folder, output, host.open, options, current())
    _show(done, Zoo.open(output), as_json)


def _factory(name: str | None, settings: Sequence[str]) -> dict[str, Any]:
    """Return the description that networks are built from; empty where none is given."""
    from sane_plugins.architectures import build
    from sane_plugins.errors import UsageError

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
    why = "--factory names it"
    given = dict(read_setting(text, ("name",), why, "classes=10") for text in settings)
    found = {"name": name, **given}
    build(found)  # what cannot be built is told before the files are read
    return found


def _show(done: Added, zoo: Zoo, as_json: bool) -> None:
    told = {
        "name": zoo.name,
        "networks": len(zoo.networks),
        "checkpoints": len(zoo),
        **asdict(done),
    }
    if as_json:
        print_json(told)
        return
    rows = [
        ("added", len(done.added)),
        ("in the zoo already", len(done.already)),
        ("equal to another, left out", len(done.equal)),
        ("not read", len(done.unread)),
        ("networks now", len(zoo.networks)),
        ("checkpoints now", len(zoo)),
    ]
    print_table(zoo.name, ("", "files"), rows)
    _list("Left out, equal", {source: f"it is {twin}" for source, twin in done.equal.items()})
    _list("Not read", done.unread)
    _list("Added without a factory", done.unbuilt)
    _list(
        "Read in part",
        {source: f"{share:.1%} of its weights" for source, share in done.partial.items()},
    )
    if done.given_factory:
        note(f"{len(done.given_factory)} networks that were in the zoo can be built now.")


def _list(title: str, told: Mapping[str, str]) -> None:
    """Tell the first files of a kind, and what of each."""
    for source, reason in list(told.items())[:_TOLD]:
        # A reason that is a sentence names the file itself.
        note(f"{title}: {reason}" if reason.endswith(".") else f"{title}: {source}: {reason}")
    if len(told) > _TOLD:
        note(f"{title}: {len(told) - _TOLD} more; --json lists all.")
