"""`sane-init`: initialise a network for a new task."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sane_plugins import __version__
from sane_plugins.builtin.sources import SMALL_CNN
from sane_plugins.cli.console import (
    command_options,
    note,
    open_host,
    print_json,
    print_table,
    progress_bars,
)  # fmt: skip
from sane_plugins.cli.targets import find_sampler, find_target, open_prompts, require_writable

if TYPE_CHECKING:
    from sane_plugins.tasks.initialise import Initialisation


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", default=SMALL_CNN)
@click.option("--task", "data", default="digits", show_default=True,
              help="The new task: an .npz (x_train, y_train, ...), a folder with one sub-folder of images"
              " per class, or 'digits'.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True,
              help="Where to write the weights (.safetensors, .pt).")  # fmt: skip
@click.option("--prompts", multiple=True,
              help="A network or zoo folder to sample near; repeat for more. Default: ours.")  # fmt: skip
@click.option(
    "--sane", type=click.Path(path_type=Path), help="A SANE of your own, from 'pretrain'."
)
@click.option("--factory", help="package.module:function that builds the network of a checkpoint.")
@click.option("--sampler", default="kde", show_default=True, help="How latents are drawn.")
@click.option("--samples", default=16, show_default=True, type=click.IntRange(1),
              help="How many candidates to draw.")  # fmt: skip
@click.option("--keep", default=3, show_default=True, type=click.IntRange(1),
              help="How many of them, and of default initialisations, to train for an epoch.")  # fmt: skip
@click.option("--size", type=click.IntRange(1), help="Resize images to SIZE x SIZE pixels.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same bytes.")
@click.option("--force", is_flag=True, help="Replace the output file if it exists.")
@click.version_option(__version__)
@command_options
def main(
    model: str, data: str, output: Path, prompts: tuple[str, ...], sane: Path | None, factory: str | None,
    sampler: str, samples: int, keep: int, size: int | None, seed: int, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Initialise MODEL for a new task, by sampling weights near trained networks.

    MODEL is 'small-cnn' (the default), a torchvision name such as resnet18, a function
    package.module:function that builds a network, or a checkpoint together with --factory (its weights
    then count as the default initialisation). Candidates and the default initialisation are scored on
    held-out images of the task, before and after one epoch of training; the best one's initial weights
    are written. Where the default initialisation wins, that is said, and it is written.

    Example: sane-init small-cnn --task digits -o digits.safetensors
    """
    from sane_plugins.tasks.initialise import InitialiseOptions
    from sane_plugins.tasks.task import load_task
    from sane_plugins.weights.writing import require_free

    require_free(output, force)
    host = open_host()
    options = InitialiseOptions(
        sampler=find_sampler(host, sampler), candidates=samples, keep=keep, seed=seed, model=sane
    )
    target = find_target(host, model, factory, load_task(data, size), resize=size is None)
    require_writable(host, target.network, output)
    given = [open_prompts(host, prompt, target) for prompt in prompts]
    graphs = [graph for prompt in given for graph in prompt.graphs]
    with progress_bars(host):
        done = host.initialise(target.network, target.task, graphs, options)
    path = host.save(done.graph, output, force=force)
    notes = [*target.notes, *(text for prompt in given for text in prompt.notes), *done.notes]
    if as_json:
        print_json(_told(done, path, notes))
    else:
        _print(done, path, notes)


def _told(done: Initialisation, path: Path, notes: list[str]) -> dict[str, Any]:
    rows = [asdict(row) for row in done.rows]
    return {
        "output": str(path), "chosen": done.chosen, "rows": rows, "notes": notes,
        "provenance": dict(done.provenance),
    }  # fmt: skip


def _print(done: Initialisation, path: Path, notes: list[str]) -> None:
    tried = [row for row in done.rows if row.after is not None]
    print_table(
        "accuracy on held-out images of the task",
        ("initialisation", "before", "after one epoch", ""),
        [
            (r.name, _percent(r.before), _percent(r.after), "chosen" if r.chosen else "")
            for r in tried
        ],
    )
    for text in notes:
        note(f"Note: {text}.")
    others = len(done.rows) - len(tried)
    if others:
        note(f"Note: {others} more initialisations were drawn and scored, but not trained.")
    click.echo(_verdict(done))
    click.echo(f"Written to {path}.")


def _verdict(done: Initialisation) -> str:
    """Say what was chosen and by how much."""
    best = {
        kind: max((r.after or 0.0 for r in done.rows if (r.kind == "sane") == kind), default=0.0)
        for kind in (True, False)
    }
    lead = _percent(abs(best[True] - best[False]))
    if done.chosen == "sane":
        return f"Chosen: a SANE candidate, {lead} points ahead of the best default initialisation."
    behind = f"{lead} points behind" if best[False] > best[True] else "no better"
    return f"Chosen: the default initialisation; the best SANE candidate is {behind}."


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
