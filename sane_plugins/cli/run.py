"""`sane-plugins run`: compute something of all networks of a folder of any size, into Parquet."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sane_plugins import folder_runs
from sane_plugins.cli.check import ignore_option
from sane_plugins.cli.console import command_options, note, open_host, print_json, progress_bars
from sane_plugins.cli.options.estimates import force_option
from sane_plugins.cli.options.factories import Opener, factory_option
from sane_plugins.cli.options.heads_options import heads_options
from sane_plugins.cli.options.trust import typed_trust
from sane_plugins.runtime import require_device

if TYPE_CHECKING:
    from sane_plugins.folder_runs import FolderJob, RunResult

_FILE = click.Path(path_type=Path)


def _parse_part(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> tuple[int, int]:
    """Return the two numbers of a part such as 3/100; all is one part."""
    number, _, count = (value or "1/1").partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise click.BadParameter(f"'{value}' is no part such as 3/100.")
    return int(number), int(count)


def run_options(command: Callable[..., FolderJob]) -> Callable[..., None]:
    """Make a command of a function that takes a job's own options and returns the job."""

    @click.argument("folder", metavar="DIR", type=_FILE)
    @click.option(
        "-o",
        "--output",
        type=_FILE,
        required=True,
        metavar="OUT",
        help="The folder of the results; one of an earlier start is gone on with.",
    )
    @click.option("--engine", default="local", show_default=True, help="What spreads the work.")
    @click.option(
        "--workers", type=click.IntRange(1), help="How many processes; by default one per core."
    )
    @click.option(
        "--part", metavar="I/N", callback=_parse_part, help="Only this part of the networks: 3/100."
    )
    @click.option("--retry-errors", is_flag=True, help="Try networks again that had an error.")
    @click.option(
        "--shard-rows",
        type=click.IntRange(1),
        default=1000,
        show_default=True,
        help="The most networks of one file of the results.",
    )
    @factory_option
    @command_options
    @functools.wraps(command)
    def run(
        folder: Path,
        output: Path,
        engine: str,
        workers: int | None,
        part: tuple[int, int],
        retry_errors: bool,
        shard_rows: int,
        factories: tuple[str, ...],
        as_json: bool,
        **own: Any,
    ) -> None:
        host = open_host()
        options = folder_runs.RunOptions(
            engine=engine,
            workers=workers or _cores(),
            part=folder_runs.Part(*part),
            retry_errors=retry_errors,
            rows_per_shard=shard_rows,
            trust=typed_trust(factories, everything=False),
            make_opener=partial(Opener, factories=factories) if factories else None,
        )
        try:
            with progress_bars(host):
                result = folder_runs.run_job(host, folder, output, command(**own), options)
        except KeyboardInterrupt:
            note(f"Whole shards are kept in {output}: the same command goes on from there.")
            raise
        _tell(result, output, as_json)

    return run


@click.command()
@click.option("--encoder", default="sane", show_default=True, help="Which encoder.")
@click.option("--sane", type=_FILE, help="A SANE of your own, from 'pretrain'.")
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@run_options
def embed(encoder: str, sane: Path | None, device: str) -> FolderJob:
    """Encode all networks below DIR: an embedding each, and one per layer.

    Example: sane-plugins run embed runs/ -o embedded/ --workers 8
    """
    require_device(device)
    return folder_runs.EmbedJob(encoder=encoder, sane=sane, device=device)


@click.command()
@force_option
@heads_options
@run_options
def predict(
    heads: Path | None, like: str | None, sane: Path | None, device: str, force: bool
) -> FolderJob:
    """Predict properties of all networks below DIR, a column each.

    Of a network unlike all that a head was fitted on, no value is told without --force, but a score that
    orders networks of one architecture.

    Example: sane-plugins run predict runs/ -o predicted/
    """
    require_device(device)
    return folder_runs.PredictJob(heads=heads, like=like, sane=sane, device=device, force=force)


@click.command()
@ignore_option
@run_options
def check(ignored: tuple[str, ...]) -> FolderJob:
    """Check all networks below DIR: a verdict and findings each.

    Example: sane-plugins run check runs/ -o checked/
    """
    return folder_runs.CheckJob(ignored=ignored)


@click.command()
@run_options
def fingerprint() -> FolderJob:
    """Make fingerprints of all networks below DIR, to find relatives and duplicates by.

    Example: sane-plugins run fingerprint runs/ -o fingerprints/
    """
    return folder_runs.FingerprintJob()


@click.group(commands={x.name: x for x in (embed, predict, check, fingerprint) if x.name})
def run() -> None:
    """Compute something of all networks below a folder of any size, in many processes or on a cluster.

    Results are Parquet files in a folder, a row per network. A network that cannot be read has its error in
    its row; the command exits with 1 only where that holds for all. What was interrupted goes on with the
    same command: what has a row is not computed again.
    """


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _tell(result: RunResult, output: Path, as_json: bool) -> None:
    """Say what was done; exit with 1 where no network has a result."""
    for path, error in result.examples:
        note(f"Error: {path}: {error}.")
    if result.errors > len(result.examples):
        note(f"Error: {result.errors - len(result.examples)} more; see the column 'error'.")
    if result.others:
        note(f"Note: {result.others} other files are no networks.")
    if as_json:
        print_json({**vars(result), "output": str(output), "examples": dict(result.examples)})
    else:
        failed = f", {result.errors} with an error" if result.errors else ""
        note(
            f"Written to {output}: {result.networks} networks{failed}, in {result.shards} files;"
            f" {result.computed} were computed, in {result.seconds:.0f} s."
        )
    if result.networks and result.errors == result.networks:
        raise click.exceptions.Exit(1)
