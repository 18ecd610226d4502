"""`sane-plugins compare`: which of two networks is better, as far as their weights tell."""

from __future__ import annotations

from pathlib import Path

import click

from sane_plugins import properties
from sane_plugins.cli.console import (
    command_options,
    note,
    open_host,
    print_json,
    print_line,
    progress_bars,
)
from sane_plugins.cli.options.estimates import tell_caveats, to_cell
from sane_plugins.cli.options.factories import Opener, factory_option
from sane_plugins.cli.options.heads_options import heads_options
from sane_plugins.display import percent_text
from sane_plugins.errors import ZooError
from sane_plugins.runtime import require_device

_SURE = 0.8  # `properties.SURE`; its room is not loaded to show help


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--property",
    "name",
    default="test_accuracy",
    show_default=True,
    help="What they are compared by.",
)
@click.option("--lower", is_flag=True, help="Less of it is better, as of a loss or a gap.")
@click.option(
    "--sure",
    type=click.FloatRange(0.5, 1),
    default=_SURE,
    show_default=True,
    help="The probability from which one is called better.",
)
@heads_options
@factory_option
@command_options
def compare(
    a: str,
    b: str,
    name: str,
    lower: bool,
    sure: float,
    heads: Path | None,
    like: str | None,
    sane: Path | None,
    device: str,
    factories: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say which of two networks is better, and how probable that is, or that it cannot be told.

    Both are estimated from weights alone, as by 'predict'. Of a network that is unlike all that the head was
    fitted on, nothing is claimed. What changed between two networks is another question: see 'diff'.

    Example: sane-plugins compare before.pt after.pt
    """
    require_device(device)
    host = open_host()
    open_source = Opener(host, factories)
    options = properties.PredictOptions(
        properties=(name,), sane=sane, heads=heads, device=device, like=like
    )
    with progress_bars(host):
        found = [host.predict(open_source(source), options) for source in (a, b)]
    open_source.tell_recognized()
    if missing := [s for s, x in zip((a, b), found, strict=True) if name not in x]:
        raise ZooError(
            missing[0], f"no head gives {name} for it", "one is needed", "choose another --property"
        )
    tell_caveats(dict(zip((a, b), found, strict=True)))
    first, second = (x[name] for x in found)
    result = properties.compare_estimates(first, second, lower, sure)
    better = {"a": a, "b": b, None: None}[result.better]
    if as_json:
        estimates = {
            letter: {"source": source, **properties.estimate_record(x)}
            for letter, source, x in (("a", a, first), ("b", b, second))
        }
        print_json({**vars(result), "better_source": better, **estimates})
        return
    if result.better is None:
        print_line(f"Cannot tell: {result.reason}.")
    else:
        percent = percent_text(result.probability or 0)
        print_line(f"{result.better.upper()} is better, {percent}: {better}.")
    for letter, source, x in (("A", a, first), ("B", b, second)):
        if isinstance(x, properties.Estimate):
            print_line(f"{letter}: {name} {to_cell(x, force=False, rank=None)}, {source}")
    note("Note: estimated from weights alone; what was measured counts for more.")
