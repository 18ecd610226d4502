"""`sane-init`: initialise a network for a new task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sane_plugins import __version__
from sane_plugins.architectures import SMALL_CNN
from sane_plugins.atomic_files import write_whole
from sane_plugins.cli.console import (
    INTERRUPTED,
    VisibleCommand,
    command_options,
    note,
    open_host,
    print_json,
    print_line,
    progress_bars,
)
from sane_plugins.cli.initialization.inputs import (
    InputNames,
    notes_on_prompts,
    resolve_prompts,
    resolve_sampler,
    with_names_in_cache,
)
from sane_plugins.cli.initialization.snippet import usage_snippet
from sane_plugins.cli.initialization.targets import resolve_target
from sane_plugins.cli.initialization.verdict import print_ranking, print_scores, verdict
from sane_plugins.cli.options.dataclass_options import dataclass_options
from sane_plugins.cli.options.numbers import PIXELS, FiniteRange
from sane_plugins.cli.options.outputs import OutputFile, require_free_outputs
from sane_plugins.cli.options.trust import trust_option, typed_trust
from sane_plugins.cli.verify import verify
from sane_plugins.initialize import MOST, InitializeOptions
from sane_plugins.runtime import require_device

if TYPE_CHECKING:
    import torch

    from sane_plugins.initialize import Initialization


@dataclass(frozen=True, kw_only=True)
class OutputFiles:
    """Where to write the weights and the report; `force` replaces existing files."""

    output: Path
    report: Path | None
    force: bool


class _InitCommand(VisibleCommand):
    """One command, whose first argument may name another: `sane-init verify FILE`."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Delegate to `verify` if it is the first argument; a folder of that name is `./verify`."""
        if args[:1] == ["verify"]:
            return verify.make_context(f"{info_name} verify", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command of the context."""
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


@click.command(cls=_InitCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", default=SMALL_CNN)
@click.option(
    "--task",
    default="digits",
    show_default=True,
    help="The new task: an .npz (x_train, y_train, ...), a folder with one sub-folder of images"
    " per class (or with 'train' and 'val' that have these), or 'digits'.",
)
@click.option(
    "--validation",
    metavar="IMAGES",
    help="Images to choose by: a folder like that of --task, an .npz, or the share of the training images"
    " that is held out.  [default: the folder 'val' beside 'train', else 0.2]",
)
@click.option(
    "-o",
    "--output",
    type=OutputFile(),
    required=True,
    help="Where to write the weights (.safetensors, .pt; .onnx where MODEL is an ONNX file that is"
    " recognised, or has --factory).",
)
@click.option(
    "--prompts",
    multiple=True,
    help="A network, a zoo folder, the name of an offer ('sane-plugins list'), or 'cache' for the networks in"
    " torch's and Hugging Face's caches; repeat for more. Default: ours.",
)
@click.option(
    "--sane", type=click.Path(path_type=Path), help="A SANE of your own, from 'pretrain'."
)
@click.option(
    "--factory",
    help="What builds the network of a checkpoint, such as package.module:function; where MODEL is a name,"
    " that of the prompts.",
)
@trust_option
@click.option("--sampler", default="kde", show_default=True, help="How latents are drawn.")
@click.option(
    "--samples",
    "candidates",
    default=16,
    show_default=True,
    type=click.IntRange(1, MOST["candidates"]),
    help="How many candidates to draw.",
)
@click.option(
    "--keep",
    default=3,
    show_default=True,
    type=click.IntRange(1, MOST["keep"]),
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
    type=click.IntRange(1, MOST["rounds"]),
    help="How often 'bootstrap' draws.",
)
@click.option(
    "--few-shot",
    default=0,
    show_default=True,
    type=click.IntRange(0, MOST["few_shot"]),
    help="Train so many candidates on the task first, and draw near these.",
)
@click.option(
    "--few-shot-epochs",
    default=2,
    show_default=True,
    type=click.IntRange(1, MOST["few_shot_epochs"]),
    help="For how long '--few-shot' trains them.",
)
@click.option(
    "--refine",
    default=0,
    show_default=True,
    type=click.IntRange(0, MOST["refine"]),
    help="Take so many steps on the latents of the chosen network, on the task's images; undone where its"
    " accuracy on held-out ones falls.",
)
@click.option(
    "--epochs",
    default=1,
    show_default=True,
    type=click.IntRange(1, MOST["epochs"]),
    help="How long the last candidates are trained to choose by.",
)
@click.option(
    "--budget",
    default=120.0,
    show_default=True,
    type=FiniteRange(0, min_open=True),
    help="Seconds of an idle machine for drawing, scoring and training candidates; a busy one takes up to"
    " four times as long.",
)
@click.option(
    "--rung",
    type=click.IntRange(0, MOST["rung"]),
    help="Do 1/2^RUNG of the work. Default: what fits into the budget, as measured at the start.",
)
@click.option("--include", multiple=True, help="Initialise only tensors of this name (a glob).")
@click.option("--exclude", multiple=True, help="Leave tensors of this name (a glob) as they are.")
@click.option(
    "--no-score",
    "scored",
    is_flag=True,
    callback=lambda _context, _option, given: not given,
    help="Train nothing: write the best transfer by leave-one-out losses, or, where nothing is transferred,"
    " one network that is not compared.",
)
@click.option(
    "--pruned",
    is_flag=True,
    help="MODEL is a pruned checkpoint: initialise its zeros only, for a second task.",
)
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@click.option("--report", type=OutputFile(), help="Write a page (.html) about it.")
@click.option("--size", type=PIXELS, help="Resize images to SIZE x SIZE pixels.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same bytes.")
@click.option("--force", is_flag=True, help="Replace the output files if they exist.")
@click.version_option(__version__)
@command_options
@dataclass_options(names=InputNames, output=OutputFiles, options=InitializeOptions)
def main(
    names: InputNames, output: OutputFiles, options: InitializeOptions, trust: bool, as_json: bool
) -> None:
    """Initialise MODEL for a new task, by sampling weights near trained networks.

    MODEL is 'small-cnn' (the default), a name of torchvision or timm such as resnet18 or convnext_atto, a
    function package.module:function that builds a network, or a checkpoint, which is recognised or is what
    --factory builds (its weights then count as the default initialisation). Candidates, transfers from
    prompts of other architectures, the default initialisation, the best prompt as it is and the mean of the
    prompts are ranked without training; the best are trained, and compared on held-out images of the task.
    The best one's initial weights are written; of those about equal, before training too, the plainest
    one's. Where that is the default initialisation, it is said. Ctrl-C writes the best so far (exit code
    130).

    'sane-init verify FILE' makes the weights of a file again.

    Example: sane-init small-cnn --task digits -o digits.safetensors
    """
    from sane_plugins.tasks import Usage, require_trainable

    host, names = open_host(), replace(names, sets_test_aside=False)
    first_task = _first_task_path(output.output) if options.pruned else None
    require_free_outputs(
        host,
        [*host.planned_files(output.output), first_task, output.report],
        output.force,
        networks=[names.model, *names.prompts],
        others=[names.task, names.sane, names.validation],
    )
    share = names.validation_share
    target = resolve_target(host, names)
    module = target.module()
    require_trainable(module, target.task, target.name)  # before prompts are read
    host.check_save(host.open(module), output.output, like=names.model, force=output.force)
    require_device(options.device)
    trusted = typed_trust((names.model, names.factory), trust)
    prompts = [resolve_prompts(host, names, prompt, target, trusted) for prompt in names.prompts]
    usage, code = Usage.of(target.task), target.build_code()
    notes = [*target.notes, *notes_on_prompts(host, names, prompts, target.task)]
    names = with_names_in_cache(names, prompts)
    options = replace(options, sampler=resolve_sampler(host, names.sampler), sane=names.sane)
    if share is not None:
        options = replace(options, validation=share)
    if not as_json:
        _print_notes(notes)  # before the work, whose length they tell
    with progress_bars(host):
        result = host.initialize(
            target.network, target.task, [x for p in prompts for x in p.networks], options
        )
    told_count = len(notes)
    notes += result.notes
    provenance = {**result.provenance, "command": names.to_json()}
    result = replace(result, provenance=provenance)
    path = host.save(
        result.graph,
        output.output,
        metadata={"provenance": provenance, **usage.to_metadata()},
        like=names.model,
        force=output.force,
    )
    snippet = usage_snippet(path, code, usage)
    if result.first_task is not None:
        notes.append(_write_first_task(result.first_task, path))
    if output.report is not None:
        _write_report(output.report, result, notes, snippet)
    if as_json:
        print_json({**_to_json(result, path, notes), **usage.to_metadata(), "snippet": snippet})
    else:
        _print_result(result, path, notes[told_count:])
        for line in ("To use it:", "", *snippet.splitlines(), ""):
            print_line(line)
    if result.interrupted:
        raise SystemExit(INTERRUPTED)


def _first_task_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.first-task.safetensors")


def _write_first_task(tensors: Mapping[str, torch.Tensor], path: Path) -> str:
    """Write a pruned network's first task beside the second task's weights; return a note that says where."""
    from safetensors.torch import save_file

    first = _first_task_path(path)
    write_whole(first, lambda partial: save_file(dict(tensors), partial))
    return f"with {first}, these weights give the first task's network again, bit for bit"


def _write_report(path: Path, result: Initialization, notes: list[str], snippet: str) -> None:
    from sane_plugins.initialize import html_report

    text = html_report(result, verdict(result), notes, snippet)
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _to_json(result: Initialization, path: Path, notes: list[str]) -> dict[str, Any]:
    return {
        "output": str(path),
        "chosen": result.chosen,
        "rows": [asdict(row) for row in result.rows],
        "notes": notes,
        "verdict": verdict(result),
        "outlook": None if result.forecast is None else result.forecast.probability,
        "outlooks": {family: x.probability for family, x in result.forecasts.items()},
        "provenance": dict(result.provenance),
    }


def _print_notes(notes: Sequence[str]) -> None:
    for text in notes:
        note(f"Note: {text}.")


def _print_result(result: Initialization, path: Path, notes: list[str]) -> None:
    trained = [row for row in result.rows if row.curve]
    if trained:
        print_scores(trained)
    else:
        print_ranking(result.rows)
    _print_notes(notes)
    if trained and (untrained := len(result.rows) - len(trained)):
        note(f"Note: {untrained} more initialisations were made and ranked, but not trained.")
    print_line(verdict(result))
    print_line(f"Written to {path}.")
