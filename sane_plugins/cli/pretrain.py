"""`sane-plugins pretrain`: train a SANE on zoos, in one process or in several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sane_plugins import architectures, autoencoder, pretraining, tasks, zoo
from sane_plugins.cli.console import command_options, note, open_host, print_json, progress_bars
from sane_plugins.cli.options.numbers import FiniteRange
from sane_plugins.cli.options.outputs import OutputFile, require_free_outputs
from sane_plugins.cli.options.trust import forget_working_directory_style, trust_options
from sane_plugins.errors import UsageError
from sane_plugins.runtime import require_device

if TYPE_CHECKING:
    import torch

    from sane_plugins.host import Host

_FILE = click.Path(path_type=Path)
_COUNT = click.IntRange(1, 2**31)
_PRESETS = ["default", "paper"]


@click.command()
@click.argument("zoos", metavar="ZOO...", type=_FILE, nargs=-1, required=True)
@click.option("-o", "--output", type=OutputFile(), required=True, help="Where to write the SANE.")
@click.option(
    "--preset",
    type=click.Choice(_PRESETS),
    default="default",
    show_default=True,
    help="What measured best, or what was published; the options below change it.",
)
@click.option(
    "--from", "start", type=_FILE, help="Begin with this SANE's parameters, and keep its shape."
)
@click.option("--steps", type=_COUNT, help="Training steps.")
@click.option("--batch", type=click.IntRange(2, 2**16), help="Windows drawn at a time.")
@click.option("--accumulate", type=_COUNT, help="Batches whose gradients make a step.")
@click.option("--lr", type=FiniteRange(0, min_open=True), help="Peak learning rate.")
@click.option("--gamma", type=FiniteRange(0, 1), help="Weight of the contrast of views.")
@click.option("--side", type=FiniteRange(0), help="Weight of tensors' scales.")
@click.option("--hidden", type=FiniteRange(0), help="Weight of tokens that are not shown.")
@click.option("--hidden-share", type=FiniteRange(0, 0.5), help="Share of them, in the mean.")
@click.option("--behaviour", type=FiniteRange(0), help="Weight of the networks' outputs.")
@click.option(
    "--images",
    multiple=True,
    metavar="ZOO=TASK",
    help="Images for the networks of a zoo, for --behaviour; repeat for more.",
)
@click.option("--views", type=click.IntRange(0, 1000), help="Permutations of each network.")
@click.option("--align/--no-align", "aligned", default=None, help="Align networks first.")
@click.option(
    "--canonical/--no-canonical", default=None, help="Order channels canonically instead."
)
@click.option(
    "--places",
    type=click.Choice(["absolute", "relative"]),
    help="Whether a token's place in the file counts.",
)
@click.option(
    "--loss",
    type=click.Choice(["standardised", "masked"]),
    help="Standardise each tensor, or normalise within the loss.",
)
@click.option(
    "--balance",
    type=click.Choice(["tokens", "networks", "zoos", "architectures"]),
    help="What is drawn equally often.",
)
@click.option("--width", "model_width", type=_COUNT, help="Width of the transformers.")
@click.option("--layers", type=_COUNT, help="Layers of each transformer.")
@click.option("--heads", type=_COUNT, help="Attention heads; they divide the width.")
@click.option("--latent", "latent_width", type=_COUNT, help="Numbers of a latent.")
@click.option("--token-width", type=_COUNT, help="Values of a token.")
@click.option("--window", type=_COUNT, help="Tokens that a window owns.")
@click.option("--halo", type=click.IntRange(0), help="Tokens it sees on either side.")
@click.option("--seed", type=click.IntRange(-(2**40), 2**40), help="Same seed, same bytes.")
@click.option("--precision", type=click.Choice(["bf16", "fp32"]), help="Of the matrix products.")
@click.option("--compile", "compiled", is_flag=True, default=None, help="Compile the SANE first.")
@click.option(
    "--save-every",
    type=click.IntRange(0),
    help="Steps between states; 0: each, or a tenth of the time.",
)
@click.option("--log-every", type=_COUNT, help="Steps between lines of the log.")
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@click.option("--resume", is_flag=True, help="Go on where an interrupted run stopped.")
@click.option("--force", is_flag=True, help="Replace the output files if they exist.")
@trust_options
@command_options
def pretrain(
    zoos: tuple[Path, ...],
    output: Path,
    preset: str,
    images: tuple[str, ...],
    start: Path | None,
    device: str,
    resume: bool,
    force: bool,
    trust: architectures.Trust,
    as_json: bool,
    **given: Any,
) -> None:
    """Train a SANE on zoos.

    Options that are not given are the preset's. Under torchrun, the processes share each batch.
    """
    host = open_host()
    sources: list[str | Path] = [*zoos, *(x.partition("=")[2] for x in images)]
    sources += [] if start is None else [start]
    _require_free(host, output, force, resume, sources)
    forget_working_directory_style()
    require_device(device)
    opened = [zoo.Zoo.open(folder, trust) for folder in zoos]
    begun = None if start is None else autoencoder.load_sane(start)
    config, options = _configuration(preset, opened, given, begun)
    behavior = _behavior_term(images, opened) if options.behaviour else None
    with pretraining.process_group(device) as own_device, progress_bars(host):
        pretraining.pretrain(
            opened,
            config,
            replace(options, device=own_device),
            output,
            resume=resume,
            report=host.report,
            behaviour=behavior,
            start=begun,
        )
        is_first = pretraining.World.current().is_first
    if is_first:
        _draw_and_print(output, options.steps, as_json)


def _configuration(
    preset: str,
    zoos: Sequence[zoo.Zoo],
    given: Mapping[str, Any],
    start: autoencoder.SANE | None,
) -> pretraining.Preset:
    """Return the preset, with the shape of a SANE to begin from, changed by the options that were given."""
    config, options = pretraining.PRESETS[preset](zoos)
    config = config if start is None else start.config
    changes = {key: value for key, value in given.items() if value is not None}
    if (precision := changes.pop("precision", None)) is not None:
        changes["bf16"] = precision == "bf16"
    if changes.get("loss") == "masked":
        changes["scale"] = "none"  # what the loss normalises is not normalised before
    if "window" in changes or "halo" in changes:
        changes["span"] = 0
    architecture = {field.name for field in fields(config)}
    return (
        replace(config, **{key: value for key, value in changes.items() if key in architecture}),
        replace(
            options, **{key: value for key, value in changes.items() if key not in architecture}
        ),
    )


def _behavior_term(
    images_by_zoo: Sequence[str], zoos: Sequence[zoo.Zoo]
) -> pretraining.BehaviorTerm | None:
    """Parse ZOO=TASK, and return the term of the loss that compares networks' outputs on these images."""
    zoo_by_name, images = {x.name: x for x in zoos}, {}
    for text in images_by_zoo:
        name, _, source = text.partition("=")
        if name not in zoo_by_name or not source:
            raise UsageError(
                f"--images {text}",
                f"no zoo is called '{name}'" if source else "it names no images",
                f"ZOO=TASK is needed, with one of {', '.join(zoo_by_name)}",
                "see 'sane-plugins zoo show'",
            )
        images[name] = _training_images(source, zoo_by_name[name])
    return pretraining.BehaviorLoss(images) if images else None


def _training_images(source: str, for_zoo: zoo.Zoo) -> torch.Tensor:
    """Return training images at the input size of a zoo's networks; raise `UsageError` if they do not fit."""
    task, factory = tasks.load_task(source), for_zoo.entries[0].factory
    size = factory.get("size")
    if factory.get("name") in architectures.FIXED_SIZE:
        size = architectures.small_cnn_size(task.channels)
    images = task.x_train if size is None else task.resized(size).x_train
    try:
        for_zoo.module(for_zoo.entries[0])(images[:2])
    except RuntimeError as error:
        raise UsageError(
            f"--images {for_zoo.name}={source}",
            f"images {tuple(images.shape[1:])} do not fit its networks",
            "what they were trained on is needed",
            "name other images",
        ) from error
    return images


def _draw_and_print(output: Path, steps: int, as_json: bool) -> None:
    """Plot the log's curves if matplotlib is installed, and print what was written."""
    log, curves = pretraining.log_path(output), _curves_path(output)
    can_draw = find_spec("matplotlib") is not None
    if can_draw:
        pretraining.draw_curves(log, curves)
    else:
        note("Note: no curves were drawn: install matplotlib with pip install 'sane-plugins[plot]'")
    if as_json:
        written = {"output": output, "log": log, "steps": steps}
        print_json({**written, "curves": curves if can_draw else None})
    else:
        note(f"Written to {output}; use it with 'sane-init --sane' or 'sane-plugins embed --sane'.")


def _curves_path(output: Path) -> Path:
    return output.with_name(output.name + ".png")


def _require_free(
    host: Host, output: Path, force: bool, resume: bool, sources: Sequence[str | Path]
) -> None:
    """Raise `UsageError` if an output exists, unless it is replaced, or goes on with, a resumed run's."""
    state = pretraining.state_path(output)
    require_free_outputs(host, [output, state], True, others=sources)
    is_interrupted = state.is_file()
    require_free_outputs(host, [output], force or (resume and is_interrupted), others=sources)
    if is_interrupted and not (force or resume):
        raise UsageError(
            state,
            "an interrupted run lies there",
            "nothing is overwritten unasked",
            "add --resume to go on, or --force to start anew",
        )
    beside = [pretraining.log_path(output), _curves_path(output)]
    require_free_outputs(host, beside, force or resume, others=sources)
