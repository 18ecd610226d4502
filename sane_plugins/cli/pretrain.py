"""The command that trains a SANE on zoos, in one process or in several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sane_plugins.cli.console import command_options, note, open_host, print_json, progress_bars
from sane_plugins.runtime import require_device

if TYPE_CHECKING:
    import torch

    from sane_plugins.pretraining import BehaviorTerm, Preset
    from sane_plugins.zoo import Zoo

_FILE = click.Path(path_type=Path)
_COUNT = click.IntRange(1)
_PRESETS = ["default", "paper"]


@click.command()
@click.argument("zoos", metavar="ZOO...", type=_FILE, nargs=-1, required=True)
@click.option("-o", "--output", type=_FILE, required=True, help="Where to write the SANE.")
@click.option(
    "--preset",
    type=click.Choice(_PRESETS),
    default="default",
    show_default=True,
    help="What measured best, or what was published; the options below change it.",
)
@click.option("--steps", type=_COUNT, help="Training steps.")
@click.option("--batch", type=click.IntRange(2), help="Windows drawn at a time.")
@click.option("--accumulate", type=_COUNT, help="Batches whose gradients make a step.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Peak learning rate.")
@click.option("--gamma", type=click.FloatRange(0, 1), help="Weight of the contrast of views.")
@click.option("--behaviour", type=click.FloatRange(0), help="Weight of the networks' outputs.")
@click.option(
    "--images",
    multiple=True,
    metavar="ZOO=TASK",
    help="Images for the networks of a zoo, for --behaviour; repeat for more.",
)
@click.option("--views", type=click.IntRange(0), help="Permutations of each network.")
@click.option("--align/--no-align", "aligned", default=None, help="Align networks first.")
@click.option(
    "--loss",
    type=click.Choice(["standardised", "masked"]),
    help="Standardise each tensor, or normalise within the loss.",
)
@click.option(
    "--balance",
    type=click.Choice(["tokens", "networks", "zoos"]),
    help="What is drawn equally often.",
)
@click.option("--width", "model_width", type=_COUNT, help="Width of the transformers.")
@click.option("--layers", type=_COUNT, help="Layers of each transformer.")
@click.option("--heads", type=_COUNT, help="Attention heads; they divide the width.")
@click.option("--latent", "latent_width", type=_COUNT, help="Numbers of a latent.")
@click.option("--token-width", type=_COUNT, help="Values of a token.")
@click.option("--window", type=_COUNT, help="Tokens that a window owns.")
@click.option("--halo", type=click.IntRange(0), help="Tokens it sees on either side.")
@click.option("--seed", type=int, help="Same seed, same bytes.")
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
@click.option("--force", is_flag=True, help="Replace the output file if it exists.")
@command_options
def pretrain(
    zoos: tuple[Path, ...],
    output: Path,
    preset: str,
    images: tuple[str, ...],
    device: str,
    resume: bool,
    force: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Train a SANE on zoos.

    Options that are not given are the preset's. Under torchrun, the processes share each batch.
    """
    from sane_plugins.pretraining import World, process_group
    from sane_plugins.pretraining import pretrain as train
    from sane_plugins.progress import current
    from sane_plugins.zoo import Zoo

    _require_room(output, force, resume)
    require_device(device)
    opened = [Zoo.open(folder) for folder in zoos]
    config, options = _chosen(preset, opened, chosen)
    term = _behaviour(images, opened) if options.behaviour else None
    with process_group(device) as own, progress_bars(open_host()):
        options = replace(options, device=own)
        train(opened, config, options, output, resume=resume, report=current(), behaviour=term)
        is_first = World.current().is_first
    if is_first:
        _tell(output, options.steps, as_json)


def _chosen(preset: str, zoos: list[Zoo], chosen: Mapping[str, Any]) -> Preset:
    """Return the preset with what was chosen on the command line."""
    from sane_plugins.pretraining import PRESETS

    config, options = PRESETS[preset](zoos)
    given = {key: value for key, value in chosen.items() if value is not None}
    if (precision := given.pop("precision", None)) is not None:
        given["bf16"] = precision == "bf16"
    if given.get("loss") == "masked":
        given["scale"] = "none"  # what the loss normalises is not normalised before
    if "window" in given or "halo" in given:
        given["span"] = 0
    shape = {field.name for field in fields(config)}
    return (
        replace(config, **{key: value for key, value in given.items() if key in shape}),
        replace(options, **{key: value for key, value in given.items() if key not in shape}),
    )


def _behaviour(named: tuple[str, ...], zoos: list[Zoo]) -> BehaviorTerm | None:
    """Return the behaviour term on the images of each named zoo."""
    from sane_plugins.errors import UsageError
    from sane_plugins.pretraining import BehaviorLoss

    known, images = {zoo.name: zoo for zoo in zoos}, {}
    for text in named:
        name, _, source = text.partition("=")
        if name not in known or not source:
            raise UsageError(
                f"--images {text}",
                f"no zoo is called '{name}'" if source else "it names no images",
                f"ZOO=TASK is needed, with one of {', '.join(known)}",
                "see 'sane-plugins zoo show'",
            )
        images[name] = _images(source, known[name])
    return BehaviorLoss(images) if images else None


def _images(source: str, zoo: Zoo) -> torch.Tensor:
    """Return training images at the size that a zoo's networks take; raise `UsageError` where none fits."""
    from sane_plugins.architectures import FIXED_SIZE, small_cnn_size
    from sane_plugins.errors import UsageError
    from sane_plugins.tasks import load_task

    task, factory = load_task(source), zoo.entries[0].factory
    size = factory.get("size")
    if factory.get("name") in FIXED_SIZE:
        size = small_cnn_size(task.channels)
    found = task.x_train if size is None else task.resized(size).x_train
    try:
        zoo.module(zoo.entries[0])(found[:2])
    except RuntimeError as error:
        raise UsageError(
            f"--images {zoo.name}={source}",
            f"images {tuple(found.shape[1:])} do not fit its networks",
            "what they were trained on is needed",
            "name other images",
        ) from error
    return found


def _tell(output: Path, steps: int, as_json: bool) -> None:
    """Draw the curves and say what was written."""
    from sane_plugins.pretraining import draw_curves, log_path

    curves = output.with_name(output.name + ".png")
    if find_spec("matplotlib"):
        draw_curves(log_path(output), curves)
    else:
        note("Note: no curves were drawn: install matplotlib with pip install 'sane-plugins[plot]'")
    if as_json:
        written = {"output": output, "log": log_path(output), "steps": steps}
        print_json({**written, "curves": curves if find_spec("matplotlib") else None})
    else:
        note(f"Written to {output}; use it with 'sane-init --sane' or 'sane-plugins embed --sane'.")


def _require_room(output: Path, force: bool, resume: bool) -> None:
    """Raise `UsageError` where something is in the way, but for the end of a run that is resumed."""
    from sane_plugins.atomic_files import require_free
    from sane_plugins.pretraining import state_path

    require_free(output, force or (resume and state_path(output).exists()))
