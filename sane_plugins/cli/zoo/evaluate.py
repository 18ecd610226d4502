"""`sane-plugins zoo evaluate`: measure a zoo's networks, or join a table of properties to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sane_plugins import tasks, zoo
from sane_plugins.architectures import Trust
from sane_plugins.cli.console import (
    command_options,
    note,
    open_host,
    print_json,
    print_table,
    progress_bars,
)
from sane_plugins.cli.options.numbers import PIXELS
from sane_plugins.cli.options.trust import trust_options
from sane_plugins.errors import UsageError, ZooError
from sane_plugins.runtime import require_device

_PATH = click.Path(path_type=Path)
_MAX_LISTED = 20


@click.command()
@click.argument("folder", metavar="ZOO", type=_PATH)
@click.option(
    "--task",
    "data",
    help="The images: an .npz (x_train, y_train, ...), a folder with one"
    " sub-folder of images per class, torchvision:NAME:FOLDER, or 'digits'.",
)
@click.option(
    "--properties",
    "table",
    type=_PATH,
    help="A .csv or .jsonl of your own, with a column 'file' or 'network'.",
)
@click.option(
    "--images",
    default=4000,
    show_default=True,
    type=click.IntRange(1),
    help="How many test images to measure on, and how many training images, at most.",
)
@click.option("--size", type=PIXELS, help="Resize images to SIZE x SIZE pixels.")
@click.option(
    "--normalize",
    metavar="HOW",
    help="How images are prepared: 'task' (mean and deviation of its training images), 'recorded' in the"
    " zoo, 'imagenet', 'none' (pixels from 0 to 1), or MEAN/DEVIATION as 0.1307/0.3081, with commas between"
    " channels.  [default: recorded, else task]",
)
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@click.option("--force", is_flag=True, help="Replace properties that are there.")
@trust_options
@command_options
def evaluate(
    folder: Path,
    data: str | None,
    table: Path | None,
    images: int,
    size: int | None,
    normalize: str | None,
    device: str,
    force: bool,
    trust: Trust,
    as_json: bool,
) -> None:
    """Measure a zoo's networks on a task, or join a table of properties to them; the zoo keeps both.

    Measured are test_accuracy, train_accuracy, gap, test_loss, train_loss and finite. Properties that are
    there stay, unless --force. A network that cannot be built, or does not take the images, is listed; so
    is one that is built by a function of its own, unless --factory names it. How images
    were prepared is kept as 'preparation': other means and deviations than in training give other figures.

    Example: sane-plugins zoo evaluate my-zoo --task mnist.npz
    """
    if data is None and table is None:
        raise UsageError(
            "zoo evaluate",
            "neither --task nor --properties is given",
            "one of them is needed",
            "name the images with --task, or a table with --properties",
        )
    summary: dict[str, Any] = {}
    if table is not None:
        summary |= _join_table(folder, table, force)
    if data is not None:
        options = zoo.EvaluateOptions(
            images=images, device=device, force=force, trust=trust, normalize=normalize
        )
        summary |= _measure(folder, data, size, options)
    if as_json:
        print_json(summary)
        return
    rows = [(key, len(v) if isinstance(v, list | dict) else v) for key, v in summary.items()]
    print_table(str(folder), ("", "count"), rows)
    for reason in list(summary.get("skipped", {}).values())[:_MAX_LISTED]:
        note(f"Skipped: {reason}")
    for row in summary.get("unmatched", [])[:_MAX_LISTED]:
        note(f"Unmatched: {row}")
    for column, count in summary.get("not joined", {}).items():
        note(
            f"Not joined: {count} networks have another {column} already, which stays; --force replaces it."
        )


def _measure(
    folder: Path, data: str, size: int | None, options: zoo.EvaluateOptions
) -> dict[str, Any]:
    """Measure every network on the images of a task."""
    require_device(options.device)
    zoo.read_index(folder)  # raises for a folder that is not a zoo, before images are loaded
    task = tasks.load_task(data, size)
    host = open_host()
    with progress_bars(host):
        result = zoo.evaluate_zoo(folder, task, options, host.report)
    if not result.measured and not result.kept:
        reason = next(iter(result.skipped.values()), "it is empty").rstrip(".")
        raise ZooError(
            folder,
            f"none of its {len(result.skipped)} networks could be measured (the first: {reason})",
            "networks that can be built and take the images are needed",
            "add them again with --factory, or choose another task",
        )
    _tell_preparations(result)
    told = {"measured": result.measured, "measured before": result.kept, "skipped": result.skipped}
    return {**told, "preparations": result.preparations}


def _tell_preparations(result: zoo.Evaluated) -> None:
    """Say how images were prepared, and of how many networks nothing said how they are to be."""
    if result.preparations:
        ways = [*result.preparations]
        others = f" and {len(ways) - 1} others" if len(ways) > 1 else ""
        note(
            f"Note: images were prepared with mean/deviation {ways[0]}{others} (pixels from 0 to 1)."
        )
    if result.guessed:
        note(
            f"Note: how {result.guessed} networks were trained is not recorded, so these are mean and"
            " deviation of the task's training images: if they saw others, the figures are wrong; say it with"
            " --normalize and --force."
        )
    if result.kept:
        note(f"Note: {result.kept} were measured before, and keep that unless --force.")


def _join_table(folder: Path, table: Path, force: bool) -> dict[str, Any]:
    """Join a table of properties to the networks of a zoo."""
    opened, rows = zoo.Zoo.open(folder), zoo.read_table(table)
    joined, unmatched = zoo.join_table(opened.entries, rows)
    if not joined:
        raise ZooError(
            table,
            f"none of its {len(rows)} rows names a network of the zoo (the first: {unmatched[0]})",
            "'file' is the end of a file's path, 'network' the name that the zoo gives it",
            "see the names with 'sane-plugins zoo show --json'",
        )
    present = {entry.key: entry.properties for entry in opened.entries}
    not_joined: dict[str, int] = {}
    if not force:
        for key, row in joined.items():
            for name in [name for name in row if name in present[key]]:
                differs = row.pop(name) != present[key][name]
                not_joined[name] = not_joined.get(name, 0) + differs
    zoo.set_properties(folder, joined)
    return {
        "joined": sum(bool(row) for row in joined.values()),
        "unmatched": unmatched,
        "not joined": {name: count for name, count in not_joined.items() if count},
    }
