"""`sane-plugins zoo train`: train a zoo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sane_plugins.cli.console import (
    command_options,
    note,
    open_host,
    print_json,
    print_table,
    progress_bars,
)
from sane_plugins.cli.settings import read_setting

if TYPE_CHECKING:
    from sane_plugins.tasks import Task
    from sane_plugins.zoo import Zoo
    from sane_plugins.zoo_training import HyperparameterRanges

_FOLDER = click.Path(path_type=Path)
_KEPT = (0, 1, 2, 4, 8, 12)
_DRAWN = ("act", "dropout", "channels_in", "classes", "name")


@click.command("train")
@click.option(
    "--task",
    "data",
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
    type=click.IntRange(1),
    help="How many networks to train.",
)
@click.option(
    "--epochs", default=12, show_default=True, type=click.IntRange(1), help="For how long, each."
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
@click.option("--size", type=click.IntRange(1), help="Resize images to SIZE x SIZE pixels.")
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
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Same seed, same bytes."
)
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@click.option(
    "--processes",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="How many processes, of one thread each; the result is the same.",
)
@click.option("--group", type=click.IntRange(1), help="How many networks to train at once.")
@click.option(
    "--save-every",
    type=click.IntRange(1),
    help="Steps between saved states.  [default: what costs a fiftieth of the time]",
)
@click.option("--resume", is_flag=True, help="Go on where an interrupted run stopped.")
@click.option(
    "--force", is_flag=True, help="Replace a zoo, or an interrupted run, that exists there."
)
@command_options
def train_command(
    data: str,
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
    resume: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Train a zoo: many networks at once, each with its own hyper-parameters.

    Activation, initialisation, optimiser, learning rate, weight decay and dropout of each network are
    drawn from the ranges of the published zoos. Networks are kept after the epochs of --keep, with the
    accuracy and loss that they have on up to 4,000 test and training images.

    Example: sane-plugins zoo train --task mnist.npz -o mnist-zoo --networks 50 --processes 2
    """
    import torch

    from sane_plugins.progress import current
    from sane_plugins.runtime import require_device
    from sane_plugins.tasks import load_task
    from sane_plugins.zoo_training import TrainingImages, ZooOptions, train_zoo

    require_device(device)
    host = open_host()
    task = _sized(load_task(data, size), architecture, size)
    task = task.subset(count, torch.Generator().manual_seed(seed))
    options = ZooOptions(
        name=output.name,
        dataset=_dataset(data),
        architecture=architecture,
        settings=_settings(settings, architecture, task),
        networks=networks,
        epochs=epochs,
        keep=_kept(keep, epochs),
        batch=batch,
        seed=seed,
        ranges=_ranges(act, init, opt),
        device=device,
        group=group,
    )
    images = TrainingImages(
        x_train=task.x_train, y_train=task.y_train, x_test=task.x_test, y_test=task.y_test
    )
    with progress_bars(host):
        zoo = train_zoo(
            images,
            options,
            output,
            processes=processes,
            save_every=save_every,
            resume=resume,
            force=force,
            report=current(),
        )
    _show(zoo, output, as_json)


def _sized(task: Task, architecture: str, size: int | None) -> Task:
    """Return the task at the one size that the architecture takes, where it has one and none is asked."""
    from sane_plugins.architectures import FIXED_SIZE, small_cnn_size

    if architecture in FIXED_SIZE and size is None:
        return task.resized(small_cnn_size(task.channels))
    return task


def _dataset(data: str) -> str:
    """Return a short name of a task."""
    from sane_plugins.tasks import TORCHVISION

    return data.split(":")[1] if data.startswith(TORCHVISION) else Path(data).stem


def _settings(given: tuple[str, ...], architecture: str, task: Task) -> dict[str, Any]:
    """Return further arguments of the architecture; numbers are told from words."""
    from sane_plugins.architectures import TAKES_SIZE

    found: dict[str, Any] = {"size": task.size[0]} if architecture in TAKES_SIZE else {}
    why = "it is drawn or given by the images"
    return found | dict(read_setting(text, _DRAWN, why, "width=8") for text in given)


def _kept(text: str | None, epochs: int) -> tuple[int, ...]:
    """Return the epochs of a list like 0,1,2."""
    from sane_plugins.errors import UsageError

    if text is None:
        return (*(epoch for epoch in _KEPT if epoch < epochs), epochs)
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
) -> HyperparameterRanges:
    """Return the default ranges, narrowed to what is named."""
    from sane_plugins.architectures import ACTIVATIONS
    from sane_plugins.errors import UsageError
    from sane_plugins.zoo_training import INITIALIZATIONS, HyperparameterRanges

    known = {"--act": (act, list(ACTIVATIONS)), "--init": (init, ["default", *INITIALIZATIONS])}
    for option, (given, names) in known.items():
        if unknown := [name for name in given if name not in names]:
            raise UsageError(
                f"{option} {unknown[0]}",
                "there is none of that name",
                f"one of {', '.join(names)} is needed",
                "choose one of them",
            )
    ranges = HyperparameterRanges()
    return replace(ranges, act=act or ranges.act, init=init or ranges.init, opt=opt or ranges.opt)


def _show(zoo: Zoo, output: Path, as_json: bool) -> None:
    last = max(float(entry.properties["epoch"]) for entry in zoo.entries)
    final = [entry for entry in zoo.entries if entry.properties["epoch"] == last]
    accuracy = sorted(float(entry.properties["test_accuracy"]) for entry in final)
    told = {
        "output": str(output),
        "networks": len(zoo.networks),
        "checkpoints": len(zoo),
        "epoch": int(last),
        "accuracy_lowest": accuracy[0],
        "accuracy_median": accuracy[len(accuracy) // 2],
        "accuracy_highest": accuracy[-1],
        "diverged": sum(not entry.properties["finite"] for entry in final),
    }
    if as_json:
        print_json(told)
        return
    rows = [(name.replace("_", " "), _rounded(value)) for name, value in told.items()]
    print_table(f"{zoo.name}: trained", ("", ""), rows)
    note(f"Look at it with 'sane-plugins zoo show {output}', learn from it with 'pretrain'.")


def _rounded(value: object) -> object:
    return f"{value:.3f}" if isinstance(value, float) else value
