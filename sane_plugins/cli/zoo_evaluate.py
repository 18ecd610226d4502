"""`sane-plugins zoo evaluate`: what is measured of a zoo's networks, or told by a table."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from sane_plugins.zoo import Evaluated

_PATH = click.Path(path_type=Path)
_TOLD = 20


@click.command("evaluate")
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
@click.option("--size", type=click.IntRange(1), help="Resize images to SIZE x SIZE pixels.")
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@click.option("--force", is_flag=True, help="Replace properties that are there.")
@command_options
def evaluate_command(
    folder: Path,
    data: str | None,
    table: Path | None,
    images: int,
    size: int | None,
    device: str,
    force: bool,
    as_json: bool,
) -> None:
    """Measure a zoo's networks on a task, or join a table of properties to them; the zoo keeps both.

    Measured are test_accuracy, train_accuracy, gap, test_loss, train_loss and finite. Properties that are
    there stay, unless --force. A network that cannot be built, or does not take the images, is listed.

    Example: sane-plugins zoo evaluate my-zoo --task mnist.npz
    """
    from sane_plugins.errors import UsageError

    if data is None and table is None:
        raise UsageError(
            "zoo evaluate",
            "neither --task nor --properties is given",
            "one of them is needed",
            "name the images with --task, or a table with --properties",
        )
    told: dict[str, Any] = {}
    if table is not None:
        told |= _join(folder, table, force)
    if data is not None:
        told |= _measure(folder, data, images, size, device, force)
    if as_json:
        print_json(told)
        return
    rows = [(key, len(v) if isinstance(v, list | dict) else v) for key, v in told.items()]
    print_table(str(folder), ("", "count"), rows)
    for reason in list(told.get("skipped", {}).values())[:_TOLD]:
        note(f"Skipped: {reason}")
    for row in told.get("unmatched", [])[:_TOLD]:
        note(f"Unmatched: {row}")


def _measure(
    folder: Path, data: str, images: int, size: int | None, device: str, force: bool
) -> dict[str, Any]:
    from sane_plugins.errors import ZooError
    from sane_plugins.progress import current
    from sane_plugins.runtime import require_device
    from sane_plugins.tasks import load_task
    from sane_plugins.zoo import EvaluateOptions, evaluate_zoo, read_index

    require_device(device)
    read_index(folder)
    task = load_task(data, size)
    options = EvaluateOptions(images=images, device=device, force=force)
    with progress_bars(open_host()):
        done: Evaluated = evaluate_zoo(folder, task, options, current())
    if not done.measured and not done.kept:
        reason = next(iter(done.skipped.values()), "it is empty").rstrip(".")
        raise ZooError(
            folder,
            f"none of its {len(done.skipped)} networks could be measured (the first: {reason})",
            "networks that can be built and take the images are needed",
            "add them again with --factory, or choose another task",
        )
    return {"measured": done.measured, "measured before": done.kept, "skipped": done.skipped}


def _join(folder: Path, table: Path, force: bool) -> dict[str, Any]:
    from sane_plugins.errors import ZooError
    from sane_plugins.zoo import Zoo, join_table, read_table, set_properties

    zoo = Zoo.open(folder)
    rows = read_table(table)
    found, lost = join_table(zoo.entries, rows)
    if not found:
        raise ZooError(
            table,
            f"none of its {len(rows)} rows names a network of the zoo (the first: {lost[0]})",
            "'file' is the end of a file's path, 'network' the name that the zoo gives it",
            "see the names with 'sane-plugins zoo show --json'",
        )
    if not force:
        own = {entry.key: entry.properties for entry in zoo.entries}
        found = {
            key: {name: value for name, value in row.items() if name not in own[key]}
            for key, row in found.items()
        }
    set_properties(folder, found)
    return {"joined": sum(bool(row) for row in found.values()), "unmatched": lost}
