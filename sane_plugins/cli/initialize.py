"""`sane-init`: initialise a network for a new task."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from sane_plugins import __version__
from sane_plugins.architectures import SMALL_CNN
from sane_plugins.atomic_files import require_free, write_whole
from sane_plugins.cli.console import (
    command_options,
    note,
    open_host,
    print_json,
    print_table,
    progress_bars,
)
from sane_plugins.cli.inputs import InputNames, resolve_prompts, resolve_sampler, resolve_target
from sane_plugins.cli.option_groups import grouped
from sane_plugins.cli.output import write_first_task
from sane_plugins.cli.verify import verify
from sane_plugins.initialize import InitializeOptions
from sane_plugins.runtime import require_device

if TYPE_CHECKING:
    from sane_plugins.initialize import CandidateScore, Family, Initialization

_LEAST = 0.3  # of the budget, where loading took most of it
_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class OutputFiles:
    """Where the result goes: the weights, and a page about them; `force` replaces what is there."""

    output: Path
    report: Path | None
    force: bool


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
    "candidates",
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
    "scored",
    is_flag=True,
    callback=lambda _context, _option, given: not given,
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
@grouped(names=InputNames, output=OutputFiles, options=InitializeOptions)
def main(names: InputNames, output: OutputFiles, options: InitializeOptions, as_json: bool) -> None:
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
    started = monotonic()
    for path in (output.output, output.report):
        if path is not None:
            require_free(path, output.force)
    host = open_host()
    target = resolve_target(host, names)
    host.check_save(host.open(target.module()), output.output, like=names.model, force=output.force)
    require_device(options.device)
    prompts = [resolve_prompts(host, prompt, target) for prompt in names.prompts]
    sampler, budget = resolve_sampler(host, names.sampler), options.budget
    assert budget is not None  # the option has a default
    left = max(_LEAST * budget, budget - (monotonic() - started))
    options = replace(options, sampler=sampler, model=names.sane, budget=left)
    with progress_bars(host):
        done = host.initialize(
            target.network, target.task, [graph for p in prompts for graph in p.graphs], options
        )
    notes = [*target.notes, *(text for prompt in prompts for text in prompt.notes), *done.notes]
    stated = {**done.provenance["options"], "budget": budget}
    provenance = {**done.provenance, "command": names.to_json(), "options": stated}
    done = replace(done, provenance=provenance)
    path = host.save(
        done.graph,
        output.output,
        metadata={"provenance": provenance},
        like=names.model,
        force=output.force,
    )
    if done.first_task is not None:
        notes.append(write_first_task(done.first_task, path))
    if output.report is not None:
        _write_report(output.report, done, notes)
    if as_json:
        print_json(_to_json(done, path, notes))
    else:
        _print(done, path, notes)
    if done.interrupted:
        raise SystemExit(_INTERRUPTED)


def _write_report(path: Path, done: Initialization, notes: list[str]) -> None:
    from sane_plugins.initialize import html_report

    text = html_report(done, _verdict(done), notes)
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _to_json(done: Initialization, path: Path, notes: list[str]) -> dict[str, Any]:
    return {
        "output": str(path),
        "chosen": done.chosen,
        "rows": [asdict(row) for row in done.rows],
        "notes": notes,
        "outlook": None if done.forecast is None else done.forecast.probability,
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
    if rows:
        print_table(
            "accuracy on held-out images of the task",
            ("initialisation", "before", "epochs", "after these", ""),
            [
                (
                    row.name,
                    _percent(row.before),
                    f"{row.epochs:.2f}" if row.curve else "0",
                    _percent(row.last),
                    "chosen" if row.chosen else "",
                )
                for row in rows
            ],
        )


def _verdict(done: Initialization) -> str:
    """Say what was chosen, and how it compares with the best of every other family trained as long."""
    from sane_plugins.initialize import Family

    if not done.rows:
        return "Generated without comparison: it may be worse than the default initialisation."
    what = {
        Family.SANE: "a SANE candidate",
        Family.DEFAULT: "the default initialisation",
        Family.PROMPT: "the prompts' own weights",
    }
    best = next(row for row in done.rows if row.chosen)
    rivals: dict[Family, CandidateScore] = {}
    for row in done.rows:
        if len(row.curve) == len(best.curve):
            rivals.setdefault(row.kind.family, row)
    label = best.kind.label if done.chosen is Family.DEFAULT else best.name
    others = " and ".join(
        f"{_compared(best.last - row.last)} {what[family]}"
        for family, row in rivals.items()
        if family is not done.chosen
    )
    return f"Chosen: {what[done.chosen]} ({label}){', ' if others else ''}{others}."


def _compared(ahead: float) -> str:
    return f"{_percent(abs(ahead))} points {'ahead of' if ahead >= 0 else 'behind'}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
