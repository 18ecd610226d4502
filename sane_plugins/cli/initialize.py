"""`sane-init`: initialise a network for a new task."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

import click

from sane_plugins import __version__
from sane_plugins.architectures import SMALL_CNN
from sane_plugins.cli.console import (
    command_options,
    note,
    open_host,
    print_json,
    print_table,
    progress_bars,
)
from sane_plugins.cli.output import require_writable, set_aside, write
from sane_plugins.cli.targets import built, find_sampler, find_target, open_prompts
from sane_plugins.cli.verify import verify
from sane_plugins.errors import UsageError

if TYPE_CHECKING:
    from sane_plugins.initialize import CandidateScore, Initialization

_LEAST = 0.3  # of the budget, where loading took most of it
_INTERRUPTED = 130


class _WithVerify(click.Command):
    """One command, whose first argument may name another: `sane-init verify FILE`."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Hand over to `verify` where it is named; a folder of that name is `./verify`."""
        if args[:1] == ["verify"]:
            return verify.make_context(f"{info_name} verify", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run whichever command the context is of."""
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


@click.command(cls=_WithVerify, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", default=SMALL_CNN)
@click.option(
    "--task",
    "data",
    default="digits",
    show_default=True,
    help="The new task: an .npz (x_train, y_train, ...), a folder with one sub-folder of images"
    " per class, or 'digits'.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Where to write the weights (.safetensors, .pt, .onnx for an ONNX model).",
)
@click.option(
    "--prompts",
    multiple=True,
    help="A network or zoo folder to sample near; repeat for more. Default: ours.",
)
@click.option(
    "--sane", type=click.Path(path_type=Path), help="A SANE of your own, from 'pretrain'."
)
@click.option("--factory", help="package.module:function that builds the network of a checkpoint.")
@click.option("--sampler", default="kde", show_default=True, help="How latents are drawn.")
@click.option(
    "--samples",
    default=16,
    show_default=True,
    type=click.IntRange(1),
    help="How many candidates to draw.",
)
@click.option(
    "--keep",
    default=3,
    show_default=True,
    type=click.IntRange(1),
    help="How many of them, and of default initialisations, to train.",
)
@click.option(
    "--search",
    type=click.Choice(["subsample", "bootstrap"]),
    default="subsample",
    show_default=True,
    help="Draw once, or again near the best so far.",
)
@click.option(
    "--rounds",
    default=3,
    show_default=True,
    type=click.IntRange(1),
    help="How often 'bootstrap' draws.",
)
@click.option(
    "--few-shot",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Train so many candidates on the task first, and draw near these.",
)
@click.option(
    "--few-shot-epochs",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    help="For how long '--few-shot' trains them.",
)
@click.option(
    "--epochs",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="How long the last candidates are trained to choose by.",
)
@click.option(
    "--budget",
    default=45.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Seconds for drawing and scoring.",
)
@click.option("--include", multiple=True, help="Initialise only tensors of this name (a glob).")
@click.option("--exclude", multiple=True, help="Leave tensors of this name (a glob) as they are.")
@click.option(
    "--no-score",
    is_flag=True,
    help="Generate one network and write it: nothing is trained or compared.",
)
@click.option(
    "--pruned",
    is_flag=True,
    help="MODEL is a pruned checkpoint: initialise its zeros only, for a second task.",
)
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@click.option("--report", type=click.Path(path_type=Path), help="Write a page (.html) about it.")
@click.option("--size", type=click.IntRange(1), help="Resize images to SIZE x SIZE pixels.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same bytes.")
@click.option("--force", is_flag=True, help="Replace the output file if it exists.")
@click.version_option(__version__)
@command_options
def main(
    model: str,
    data: str,
    output: Path,
    prompts: tuple[str, ...],
    sane: Path | None,
    factory: str | None,
    sampler: str,
    samples: int,
    keep: int,
    search: Literal["subsample", "bootstrap"],
    rounds: int,
    few_shot: int,
    few_shot_epochs: int,
    epochs: int,
    budget: float,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    pruned: bool,
    no_score: bool,
    device: str,
    report: Path | None,
    size: int | None,
    seed: int,
    force: bool,
    as_json: bool,
) -> None:
    """Initialise MODEL for a new task, by sampling weights near trained networks.

    MODEL is 'small-cnn' (the default), a torchvision name such as resnet18, a function
    package.module:function that builds a network, or a checkpoint together with --factory (its weights
    then count as the default initialisation). Candidates, the default initialisation, the best prompt as
    it is and the mean of the prompts are scored on held-out images of the task, and the better ones are
    trained longer; the best one's initial weights are written. Where that is the default
    initialisation, it is said. Ctrl-C writes the best so far (exit code 130).

    'sane-init verify FILE' makes the weights of a file again.

    Example: sane-init small-cnn --task digits -o digits.safetensors
    """
    from sane_plugins.atomic_files import require_free
    from sane_plugins.initialize import InitializeOptions
    from sane_plugins.tasks import load_task

    started = monotonic()
    for path in (output, report):
        if path is not None:
            require_free(path, force)
    host = open_host()
    target = find_target(host, model, factory, load_task(data, size), resize=size is None)
    require_writable(host, host.open(built(target.network)), model, output)
    _require_device(device)
    given = [open_prompts(host, prompt, target) for prompt in prompts]
    options = InitializeOptions(
        sampler=find_sampler(host, sampler),
        candidates=samples,
        keep=keep,
        seed=seed,
        model=sane,
        search=search,
        rounds=rounds,
        few_shot=few_shot,
        few_shot_epochs=few_shot_epochs,
        epochs=epochs,
        budget=max(_LEAST * budget, budget - (monotonic() - started)),
        include=include,
        exclude=exclude,
        pruned=pruned,
        scored=not no_score,
        device=device,
    )
    with progress_bars(host):
        done = host.initialize(
            target.network, target.task, [graph for p in given for graph in p.graphs], options
        )
    command = {
        "model": model,
        "factory": factory,
        "task": data,
        "size": size,
        "prompts": list(prompts),
        "sane": None if sane is None else str(sane),
        "sampler": sampler,
    }
    stated = {**done.provenance["options"], "budget": budget}
    done = replace(done, provenance={**done.provenance, "command": command, "options": stated})
    notes = [*target.notes, *(text for prompt in given for text in prompt.notes), *done.notes]
    path = write(host, done.graph, done.provenance, model, output, force)
    if done.aside is not None:
        notes.append(set_aside(done.aside, path))
    if report is not None:
        _write_page(report, done, notes)
    if as_json:
        print_json(_told(done, path, notes))
    else:
        _print(done, path, notes)
    if done.interrupted:
        raise SystemExit(_INTERRUPTED)


def _require_device(device: str) -> None:
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device {device}",
            f"torch cannot use it ({str(error).partition(chr(10))[0]})",
            "a device of this machine is needed",
            "leave it out to use the CPU",
        ) from error


def _write_page(path: Path, done: Initialization, notes: list[str]) -> None:
    from sane_plugins.atomic_files import write_whole
    from sane_plugins.initialize import html_report

    text = html_report(done, _verdict(done), notes)
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _told(done: Initialization, path: Path, notes: list[str]) -> dict[str, Any]:
    rows = [asdict(row) for row in done.rows]
    return {
        "output": str(path),
        "chosen": done.chosen,
        "rows": rows,
        "notes": notes,
        "outlook": None if done.outlook is None else done.outlook.probability,
        "provenance": dict(done.provenance),
    }


def _print(done: Initialization, path: Path, notes: list[str]) -> None:
    tried = [row for row in done.rows if row.curve] or list(done.rows)
    _print_rows(tried)
    for text in notes:
        note(f"Note: {text}.")
    others = len(done.rows) - len(tried)
    if others:
        note(f"Note: {others} more initialisations were drawn and scored, but not trained.")
    click.echo(_verdict(done))
    click.echo(f"Written to {path}.")


def _print_rows(rows: list[CandidateScore]) -> None:
    if not rows:
        return
    print_table(
        "accuracy on held-out images of the task",
        ("initialisation", "before", "epochs", "after these", ""),
        [
            (
                r.name,
                _percent(r.before),
                f"{r.curve[-1][0]:.2f}" if r.curve else "0",
                _percent(_last(r)),
                "chosen" if r.chosen else "",
            )
            for r in rows
        ],
    )


def _verdict(done: Initialization) -> str:
    """Say what was chosen, and how it compares with the best of every other family trained as long."""
    if not done.rows:
        return "Generated without comparison: it may be worse than the default initialisation."
    best = next(row for row in done.rows if row.chosen)
    what = {
        "sane": "a SANE candidate",
        "default": "the default initialisation",
        "prompt": "the prompts' own weights",
    }
    found: dict[str, CandidateScore] = {}
    for row in done.rows:
        if len(row.curve) == len(best.curve):
            found.setdefault(_family(row.kind), row)
    others = [
        f"{_compared(_last(best) - _last(row))} {what[name]}"
        for name, row in found.items()
        if name != done.chosen
    ]
    label = best.name if done.chosen != "default" else best.kind
    return (
        f"Chosen: {what[done.chosen]} ({label})"
        + (", " if others else "")
        + " and ".join(others)
        + "."
    )


def _compared(ahead: float) -> str:
    points = _percent(abs(ahead))
    return f"{points} points {'ahead of' if ahead >= 0 else 'behind'}"


def _family(kind: str) -> str:
    from sane_plugins.initialize import family

    return family(kind)


def _last(row: CandidateScore) -> float:
    return row.curve[-1][1] if row.curve else row.before


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
