"""`sane-plugins zoo train`: train the networks of a new zoo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from sane_plugins import architectures, tasks, zoo, zoo_training
from sane_plugins.cli.console import (
    command_options,
    note,
    open_host,
    print_json,
    print_table,
    progress_bars,
)
from sane_plugins.cli.options.numbers import PIXELS, SEED, FiniteRange
from sane_plugins.cli.options.trust import typed_trust
from sane_plugins.cli.zoo.recipe import read_recipe, require_options_that_fit, train_chosen
from sane_plugins.cli.zoo.settings import parse_settings
from sane_plugins.errors import UsageError
from sane_plugins.runtime import require_device

_FOLDER = click.Path(path_type=Path)
_FILE = click.Path(path_type=Path)
_KEPT_EPOCHS = (0, 1, 2, 4, 8, 12)
_RESERVED = ("act", "dropout", "channels_in", "classes", "name")


@click.command()
@click.option(
    "--task",
    default="digits",
    show_default=True,
    help="The images: an .npz (x_train, y_train, ...), a folder with one sub-folder of images"
    " per class, torchvision:NAME:FOLDER for files that lie there, or 'digits'.",
)
@click.option("-o", "--output", type=_FOLDER, required=True, help="The new zoo's folder.")
@click.option(
    "--architecture",
    default="small_cnn",
    show_default=True,
    help="small_cnn, wide_cnn, mlp, resnet, vit, or package.module:function.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A further argument of the architecture, as width=8; repeat for more.",
)
@click.option(
    "--networks",
    default=200,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    help="How many networks to train.",
)
@click.option(
    "--epochs",
    default=12,
    show_default=True,
    type=click.IntRange(1, 100_000),
    help="For how long, each.",
)
@click.option("--keep", help="Epochs after which networks are kept.  [default: 0,1,2,4,8,12]")
@click.option(
    "--images",
    "count",
    default=10_000,
    show_default=True,
    type=click.IntRange(2),
    help="How many images to train on, at most.",
)
@click.option("--size", type=PIXELS, help="Resize images to SIZE x SIZE pixels.")
@click.option(
    "--batch", default=64, show_default=True, type=click.IntRange(1), help="Images a step."
)
@click.option("--act", multiple=True, help="Draw from these activations only.")
@click.option("--init", multiple=True, help="Draw from these initialisations only.")
@click.option(
    "--opt",
    multiple=True,
    type=click.Choice(["sgd", "adam"]),
    help="Draw from these optimisers only.",
)
@click.option("--seed", default=0, show_default=True, type=SEED, help="Same seed, same bytes.")
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@click.option(
    "--processes",
    default=1,
    show_default=True,
    type=click.IntRange(1, 1024),
    help="How many processes, of one thread each; the result is the same.",
)
@click.option("--group", type=click.IntRange(1), help="How many networks to train at once.")
@click.option(
    "--save-every",
    type=click.IntRange(1),
    help="Steps between saved states.  [default: what costs a fiftieth of the time]",
)
@click.option(
    "--recipe",
    type=_FILE,
    help="Train what a JSON file says: networks of several forms on several tasks.",
)
@click.option(
    "--only", multiple=True, metavar="PATTERN", help="Of a recipe, networks with such names only."
)
@click.option(
    "--data", type=_FOLDER, help="Where a recipe's images lie.  [default: beside the recipe]"
)
@click.option(
    "--minutes",
    type=FiniteRange(0, min_open=True),
    help="Stop a recipe after so many minutes, and keep what there is; --resume goes on.",
)
@click.option(
    "--factory",
    "factories",
    multiple=True,
    metavar="NAME",
    help="A package.module:function that a recipe names and you know; repeat for more.",
)
@click.option("--resume", is_flag=True, help="Go on where an interrupted run stopped.")
@click.option(
    "--force", is_flag=True, help="Replace a zoo, or an interrupted run, that exists there."
)
@command_options
@click.pass_context
def train(
    context: click.Context,
    task: str,
    output: Path,
    architecture: str,
    settings: tuple[str, ...],
    networks: int,
    epochs: int,
    keep: str | None,
    count: int,
    size: int | None,
    batch: int,
    act: tuple[str, ...],
    init: tuple[str, ...],
    opt: tuple[str, ...],
    seed: int,
    device: str,
    processes: int,
    group: int | None,
    save_every: int | None,
    recipe: Path | None,
    only: tuple[str, ...],
    data: Path | None,
    minutes: float | None,
    factories: tuple[str, ...],
    resume: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Train a zoo: many networks at once, each with its own hyper-parameters.

    Activation, initialisation, optimiser, learning rate, weight decay and dropout of each network are
    drawn from the ranges of the published zoos. Networks are kept after the epochs of --keep, with the
    accuracy and loss that they have on up to 4,000 test and training images.

    With --recipe the file says all that; --images and --epochs then are what no network goes beyond.

    Example: sane-plugins zoo train --task mnist.npz -o mnist-zoo --networks 50 --processes 2
    """
    require_device(device)
    require_options_that_fit(context, recipe is not None)
    if recipe is not None:
        options = zoo_training.RecipeOptions(
            name=output.name,
            data=data or recipe.parent,
            device=device,
            processes=processes,
            minutes=minutes,
            save_every=save_every,
        )
        chosen = read_recipe(context, recipe, only)
        trust = typed_trust(factories, everything=False)
        train_chosen(
            chosen, options, output, resume=resume, force=force, trust=trust, as_json=as_json
        )
        return
    zoo_training.require_start(output, resume, force, [task])
    architecture = architectures.family_name(architecture) or architecture
    host = open_host()
    images = tasks.load_task(task, size)
    if architecture in architectures.FIXED_SIZE and size is None:
        images = images.resized(architectures.small_cnn_size(images.channels))
    drawn = zoo_training.ZooOptions(
        name=output.name,
        dataset=_dataset_name(task),
        architecture=architecture,
        settings=_arguments(settings, architecture, images),
        networks=networks,
        epochs=epochs,
        keep=_epochs_to_keep(keep, epochs),
        batch=batch,
        seed=seed,
        ranges=_ranges(act, init, opt),
        device=device,
        group=group,
    )
    with progress_bars(host):
        trained = zoo_training.train_zoo(
            zoo_training.TrainingImages.from_task(images, count, seed),
            drawn,
            output,
            processes=processes,
            save_every=save_every,
            resume=resume,
            force=force,
            report=host.report,
            trust=typed_trust([architecture], everything=False),
        )
    _print(trained, output, as_json)


def _dataset_name(data: str) -> str:
    """Return what a zoo calls the images of --task: the file's or data set's name."""
    return data.split(":")[1] if data.startswith(tasks.TORCHVISION) else Path(data).stem


def _arguments(settings: tuple[str, ...], architecture: str, task: tasks.Task) -> dict[str, Any]:
    """Return further arguments of the architecture: the images' size where it takes one, and --set."""
    size = {"size": task.size[0]} if architecture in architectures.TAKES_SIZE else {}
    why = "it is drawn or given by the images"
    return size | parse_settings(settings, _RESERVED, why, "width=8")


def _epochs_to_keep(text: str | None, epochs: int) -> tuple[int, ...]:
    """Parse a list of epochs like 0,1,2; without one, early epochs and the last."""
    if text is None:
        return (*(epoch for epoch in _KEPT_EPOCHS if epoch < epochs), epochs)
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"--keep {text}",
            "it is no list of whole numbers",
            "epochs with commas are needed",
            "write for example --keep 0,1,2",
        ) from error


def _ranges(
    act: tuple[str, ...], init: tuple[str, ...], opt: tuple[str, ...]
) -> zoo_training.HyperparameterRanges:
    """Return the default ranges, narrowed to what the options name."""
    choices = {
        "--act": (act, list(architectures.ACTIVATIONS)),
        "--init": (init, ["default", *zoo_training.INITIALIZATIONS]),
    }
    for option, (names, valid) in choices.items():
        if unknown := [name for name in names if name not in valid]:
            raise UsageError(
                f"{option} {unknown[0]}",
                "there is none of that name",
                f"one of {', '.join(valid)} is needed",
                "choose one of them",
            )
    ranges = zoo_training.HyperparameterRanges()
    return replace(ranges, act=act or ranges.act, init=init or ranges.init, opt=opt or ranges.opt)


def _print(trained: zoo.Zoo, output: Path, as_json: bool) -> None:
    """Print counts, and the accuracies after the last epoch."""
    last = max(float(entry.properties["epoch"]) for entry in trained.entries)
    final = [entry for entry in trained.entries if entry.properties["epoch"] == last]
    accuracy = sorted(float(entry.properties["test_accuracy"]) for entry in final)
    summary = {
        "output": str(output),
        "networks": len(trained.networks),
        "checkpoints": len(trained),
        "epoch": int(last),
        "accuracy_lowest": accuracy[0],
        "accuracy_median": accuracy[len(accuracy) // 2],
        "accuracy_highest": accuracy[-1],
        "diverged": sum(not entry.properties["finite"] for entry in final),
    }
    if as_json:
        print_json(summary)
        return
    rows = [
        (name.replace("_", " "), f"{value:.3f}" if isinstance(value, float) else value)
        for name, value in summary.items()
    ]
    print_table(f"{trained.name}: trained", ("", ""), rows)
    note(f"Look at it with 'sane-plugins zoo show {output}', learn from it with 'pretrain'.")
