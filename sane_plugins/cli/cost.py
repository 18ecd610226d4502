"""`sane-plugins cost`: what running networks takes, from their architecture, and how long it takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sane_plugins.cli.console import (
    command_options,
    open_host,
    print_json,
    print_lines,
    progress_bars,
)
from sane_plugins.cli.cost_table import CostTable
from sane_plugins.cli.options.factories import Opener, factory_option
from sane_plugins.cli.options.numbers import PIXELS, FiniteRange
from sane_plugins.cli.options.sources import require_none_failed
from sane_plugins.errors import SaneError, UsageError
from sane_plugins.progress import Progress
from sane_plugins.runtime import require_device

if TYPE_CHECKING:
    from sane_plugins.cost import CostOptions, NetworkCost
    from sane_plugins.host import Host

_MAX_AXES = 8
_MAX_LENGTH = 2**31


def _parse_shape(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """Return the lengths of one input without its batch, which are written with commas between them."""
    if text is None:
        return None
    parts = text.split(",")
    if not all(x.isdecimal() and 0 < int(x[:12]) < _MAX_LENGTH for x in parts):
        raise click.BadParameter(f"'{text[:80]}' is no list of lengths such as 3,224,224.")
    if len(parts) > _MAX_AXES:
        raise click.BadParameter(f"it has {len(parts)} lengths, and at most {_MAX_AXES} are taken.")
    return tuple(map(int, parts))


@click.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option(
    "--size",
    type=PIXELS,
    help="Images of SIZE x SIZE pixels; by default 224, or what the network takes instead.",
)
@click.option(
    "--batch",
    default=1,
    show_default=True,
    type=click.IntRange(1, 2**20),
    help="How many inputs at once.",
)
@click.option(
    "--shape",
    callback=_parse_shape,
    metavar="C,H,W",
    help="An input whole, without its batch; no --size.",
)
@click.option(
    "--dim",
    "dims",
    type=(str, click.IntRange(1, _MAX_LENGTH)),
    multiple=True,
    metavar="NAME N",
    help="A size that an ONNX file leaves open, by its name there; repeat for more.",
)
@click.option("--latency", is_flag=True, help="Measure how long a pass takes on this machine.")
@click.option("--device", default="cpu", show_default=True, help="With --latency: a torch device.")
@click.option("--threads", type=click.IntRange(1, 4096), help="With --latency: threads of the CPU.")
@click.option(
    "--clock",
    type=click.Choice(["wall", "cpu"]),
    default="wall",
    show_default=True,
    help="With --latency: the time that passes, or processor time, which a busy machine hardly moves.",
)
@click.option(
    "--seconds",
    default=0.5,
    show_default=True,
    type=FiniteRange(0.001, 3_600),
    help="With --latency: repeat passes at least so long.",
)
@click.option(
    "--measured",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Predict latency from networks that were measured: what --latency --json printed.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print the result as comma-separated values.")
@factory_option
@command_options
def cost(
    sources: tuple[str, ...],
    size: int | None,
    batch: int,
    shape: tuple[int, ...] | None,
    dims: tuple[tuple[str, int], ...],
    latency: bool,
    device: str,
    threads: int | None,
    clock: str,
    seconds: float,
    measured: Path | None,
    as_csv: bool,
    factories: tuple[str, ...],
    as_json: bool,
) -> None:
    """Count parameters, MACs, activations and memory of inference, from the architecture alone.

    No weight is used: names, ONNX files, and files of a known architecture, or of one that --factory names.
    MACs are multiply-accumulates, half of what torch counts as FLOPs.

    Example: sane-plugins cost torchvision:resnet18 torchvision:mobilenet_v2 --latency
    """
    from sane_plugins.cost import CostOptions, LatencyOptions, fit_latency, read_measured

    if shape is not None and size is not None:
        raise UsageError("--shape", "--size is given too", "one of them is needed", "leave one out")
    if as_json and as_csv:
        raise UsageError("--csv", "--json is given too", "one of them is needed", "leave one out")
    timing = None
    if latency:
        require_device(device)
        timing = LatencyOptions(seconds=seconds, device=device, clock=clock, threads=threads)
    model = None
    if measured is not None:
        others = {k: x for k, x in read_measured(measured).items() if latency or k not in sources}
        model = fit_latency([*others.values()], f"--measured {measured}")
    options = CostOptions(size=size, batch=batch, shape=shape, dims=dims, latency=timing)
    host = open_host()
    with progress_bars(host):
        costs, errors = _count_each(host, sources, Opener(host, factories), options)
    table = CostTable([*dict.fromkeys(sources)], costs, errors, model)
    if as_json:
        print_json(table.records())
    elif as_csv:
        print_lines(table.csv().split("\n"))
    else:
        table.show()
    require_none_failed([*errors])


def _count_each(
    host: Host, sources: Sequence[str], opener: Opener, options: CostOptions
) -> tuple[dict[str, NetworkCost], dict[str, SaneError]]:
    """Return the costs by source, and the errors of those that cannot be counted."""
    costs, errors = {}, {}
    for i, source in enumerate(dict.fromkeys(sources)):
        host.report(Progress(job="cost", done=i, total=len(sources), note=source))
        try:
            costs[source] = host.cost(_subject(source, opener, options), options)
        except SaneError as error:
            if len(sources) == 1:
                raise
            errors[source] = error
    return costs, errors


def _subject(source: str, opener: Opener, options: CostOptions) -> Any:
    """Return what is counted: the source, or for a file the module that a factory of the user's builds."""
    from sane_plugins.formats import exists

    if not opener.builders or not exists(source):
        return source
    from sane_plugins.recognition import fit_builder

    graph = opener(source)  # raises where none of them builds it
    if graph.container == "onnx":
        return source
    for builder in opener.builders:
        if (fit := fit_builder(graph, builder)) is not None:
            classes = fit[1]
            return builder.build(classes) if options.latency else builder.module(classes)
    return graph
