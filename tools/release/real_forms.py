"""Train the zoo of real forms and a SANE on it, on two cores in the background or on a lent GPU in minutes.

    python tools/release/real_forms.py pack --data ../shared/data          # what travels to a GPU: parts 1, 2, ...
    python tools/release/real_forms.py images --data DIR                   # files of images for the recipe
    python tools/release/real_forms.py cost                                # core hours, from two steps of each form
    python tools/release/real_forms.py zoo [--device cuda --processes 12 --minutes 4]
    python tools/release/real_forms.py sane [--device cuda --minutes 4] [--steps N]
    python tools/release/real_forms.py measure [--device cuda]             # decoded networks that it has not seen
    python tools/release/real_forms.py export --out DIR [--part 1 ...]     # what comes back, in files of 12 MB
    python tools/release/real_forms.py record --hardware NAME              # card and recipe into benchmarks/results/

All lies in `--work` (runs/real_forms). A stage that was stopped goes on where it was. Of each zoo some networks are
left out of pretraining: a fifth of the real forms, and the evaluation pools of the toys. tools/release/README.md
has the commands of a GPU session and of the variant for two cores.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import shutil
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from sane_plugins.atomic_files import write_whole
from sane_plugins.autoencoder import (
    SANEConfig,
    decode,
    encode,
    load_sane,
    read_metadata,
    save_sane,
)
from sane_plugins.grafting import condition
from sane_plugins.pretraining import (
    PretrainOptions,
    World,
    log_path,
    prepare_datasets,
    pretrain,
    process_group,
    read_log,
    state_path,
)
from sane_plugins.progress import Progress
from sane_plugins.runtime import random_stream
from sane_plugins.tasks import accuracy
from sane_plugins.weights import load_into
from sane_plugins.zoo import Entry, Zoo, evaluation_pool, import_published, is_zoo, write_zoo
from sane_plugins.zoo.index import ZooIndex
from sane_plugins.zoo.shards import ShardWriter
from sane_plugins.zoo_training import Recipe, RecipeOptions, TrainingImages, train_recipe
from sane_plugins.zoo_training.augmentation import resized
from sane_plugins.zoo_training.network_trainer import NetworkTrainer, TrainerSettings
from sane_plugins.zoo_training.recipe_zoo import load_images

ROOT = Path(__file__).parents[2]
RECIPE = Path(__file__).parent / "recipes" / "real_forms.json"
PHOTOS = "tiny-imagenet-100.zip"
HELD_OUT = 10  # of the photos of a class one in so many is a test image
PUBLISHED = ("mnist-cnn", "cifar10-cnn")
UNSEEN = 0.2  # share of the real forms that pretraining does not see
PROBE_STEPS = 60
PART_BYTES = 11 * 2**20
PARTS = 4  # files of a part
MEASURED = 1000  # images
COST_BATCH = 32
NORM_BATCHES, NORM_BATCH = 20, 100


def main() -> None:
    """Run a stage."""
    arguments = _parser().parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.stage(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "real_forms")
    stages = parser.add_subparsers(required=True)
    for stage in (pack, images, cost, zoo, sane, measure, export, record):
        added = stages.add_parser(stage.__name__, help=(stage.__doc__ or "").partition("\n")[0])
        added.set_defaults(stage=stage)
        if stage in (pack, images):
            added.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
            added.add_argument("--photos", type=int, default=500, help="of each class, at most")
        if stage in (zoo, sane, measure):
            added.add_argument("--device", default="cpu")
        if stage in (zoo, sane):
            added.add_argument("--minutes", type=float)
        if stage is zoo:
            added.add_argument("--processes", type=int, default=1)
        if stage in (cost, zoo):
            added.add_argument("--only", action="append", help="networks of such names")
            added.add_argument("--epochs", type=int, help="at most")
            added.add_argument("--images", type=int, help="for training, at most")
        if stage is sane:
            for name, default in (("steps", 0), ("batch", 128), ("accumulate", 2), ("views", 3)):
                added.add_argument(f"--{name}", type=int, default=default)
            for name, default in (("width", 256), ("heads", 4), ("layers", 3), ("latent", 144)):
                added.add_argument(f"--{name}", type=int, default=default)
            for name, rate in (("lr", 1e-3), ("noise", 0.05), ("side", 0.3), ("hidden", 0.5)):
                added.add_argument(f"--{name}", type=float, default=rate)
            added.add_argument(
                "--toys", type=int, default=1, help="each is drawn so many times as often"
            )
            added.add_argument("--places", choices=["absolute", "relative"], default="relative")
            added.add_argument("--in-file-order", action="store_true", help="align instead")
            added.add_argument("--start", type=Path, help="a SANE to begin from, of its shape")
        if stage is record:
            added.add_argument("--hardware", required=True, help="what both were trained on")
        if stage is export:
            added.add_argument("--out", type=Path, required=True)
            added.add_argument("--part", type=int, default=0, help="of the zoo: four of its files")
    return parser


# What travels


def pack(arguments: argparse.Namespace) -> None:
    """Write what a GPU session needs into folders part1, part2, ..., each small enough for one transfer."""
    data = arguments.data / "datasets"
    photos, tables, toys = (arguments.work / f"part{i}" for i in (1, 2, 3))
    for folder in (photos, tables, toys):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    with (
        zipfile.ZipFile(data / PHOTOS) as stored,
        zipfile.ZipFile(photos / PHOTOS, "w") as written,
    ):
        for name in _photo_names(stored, arguments.photos):
            written.writestr(name, stored.read(name))
    for name in ("cifar10.npz", "fashion_mnist.npz"):
        shutil.copy(data / name, tables)
    for toy in _toys(arguments.data):
        pool = evaluation_pool(toy)
        kept = toy.where(lambda entry, pool=pool: entry.network not in pool)  # type: ignore[misc]
        items = ((entry, _in_half(toy.state_dict(entry))) for entry in kept.entries)
        write_zoo(toys / toy.name, toy.name, items)
    if is_zoo(arguments.work / "published"):  # of files, made by `sane-plugins zoo add`
        files = Zoo.open(arguments.work / "published")
        items = ((entry, _in_half(files.state_dict(entry))) for entry in files.entries)
        write_zoo(photos / "published", "published", items)
    for folder in (photos, tables, toys):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        _say(f"{folder}: {size / 1e6:.1f} MB")


def _toys(data: Path) -> list[Zoo]:
    """Return the finite networks of the published zoos, and of those of benchmarks/zoos.py that are there."""
    published = [import_published(data / "zoos" / f"{name}.json") for name in PUBLISHED]
    trained = sorted((ROOT / "runs" / "zoos").glob("*"))
    zoos = [*published, *(Zoo.open(folder) for folder in trained if is_zoo(folder))]
    return [x.where(lambda entry: bool(entry.properties["finite"])) for x in zoos]


def _in_half(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors in half precision, but for those that it cannot hold."""
    found = {}
    for key, tensor in state.items():
        half = tensor.half() if tensor.is_floating_point() else tensor
        found[key] = half if bool(half.isfinite().all()) else tensor
    return found


def images(arguments: argparse.Namespace) -> None:
    """Write the recipe's files of images: photos are decoded, the others copied."""
    folder = arguments.work / "images"
    folder.mkdir(exist_ok=True)
    data = arguments.data / "datasets" if (arguments.data / "datasets").exists() else arguments.data
    for name in ("cifar10.npz", "fashion_mnist.npz"):
        shutil.copy(data / name, folder)
    write_whole(
        folder / "photos100.npz", lambda path: _decode(data / PHOTOS, arguments.photos, path)
    )


def _decode(archive: Path, most: int, path: Path) -> None:
    from PIL import Image

    with zipfile.ZipFile(archive) as stored:
        names = _photo_names(stored, most)
        pictures = [Image.open(io.BytesIO(stored.read(name))).convert("RGB") for name in names]
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    classes = sorted({name.split("/")[0] for name in names})
    labels = np.array([classes.index(name.split("/")[0]) for name in names], dtype=np.uint8)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in range(len(classes)):
        members = np.flatnonzero(labels == label)
        order = torch.randperm(len(members), generator=random_stream(0, "held out", label)).numpy()
        is_test[members[order[: len(members) // HELD_OUT]]] = True
    with path.open("wb") as file:
        np.savez(
            file,
            x_train=pixels[~is_test],
            y_train=labels[~is_test],
            x_test=pixels[is_test],
            y_test=labels[is_test],
            classes=np.array(classes),
        )


def _photo_names(stored: zipfile.ZipFile, most: int) -> list[str]:
    """Return the first photos of each class, by name."""
    by_class: dict[str, list[str]] = {}
    for name in sorted(name for name in stored.namelist() if name.endswith(".JPEG")):
        by_class.setdefault(name.split("/")[0], []).append(name)
    return [name for names in by_class.values() for name in names[:most]]


# The zoo


def _recipe(arguments: argparse.Namespace) -> Recipe:
    recipe = Recipe.read(RECIPE)
    recipe = recipe.only(arguments.only) if arguments.only else recipe
    return recipe.at_most(epochs=arguments.epochs, images=arguments.images)


def cost(arguments: argparse.Namespace) -> None:
    """Take a step of each form on one core, by processor time, and say what the recipe costs."""
    recipe, each, total = _recipe(arguments), dict[str, float](), 0.0
    counts = {
        name: len(load_images(task, arguments.work / "images").y_train)
        for name, task in recipe.tasks.items()
    }
    x, y = torch.randn(2 * COST_BATCH, 3, 32, 32), torch.zeros(2 * COST_BATCH, dtype=torch.long)
    given = TrainingImages(x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    settings = TrainerSettings(keep=(), measured=2, device="cpu", bf16=False, save_every=None)
    torch.set_num_threads(1)
    for network in recipe.networks:
        form = json.dumps([network.factory, network.training.size])
        if form not in each:
            short = replace(network.training, batch=COST_BATCH, images=0, epochs=1)
            factory = {**network.factory, "channels_in": 3, "classes": 10}
            trainer = NetworkTrainer(replace(network, training=short), factory, given, settings)
            steps = trainer.run(arguments.work / "cost.safetensors", form)
            next(steps)  # the first one is slower
            started = time.process_time()
            next(steps)
            each[form] = (time.process_time() - started) / COST_BATCH
            (arguments.work / "cost.safetensors").unlink(missing_ok=True)
            _say(f"{each[form] * 1e3:.2f} ms an image: {form}")
        images_seen = min(network.training.images or 10**9, counts[network.task])
        total += each[form] * images_seen * network.training.epochs
    _say(f"{total / 3600:.1f} core hours for {len(recipe.networks)} networks")


def zoo(arguments: argparse.Namespace) -> None:
    """Train the recipe."""
    trained = train_recipe(
        _recipe(arguments),
        RecipeOptions(
            name="real-forms",
            data=arguments.work / "images",
            device=arguments.device,
            processes=arguments.processes,
            minutes=arguments.minutes,
        ),
        arguments.work / "real-forms",
        resume=True,
        report=_Lines(),
    )
    _say(f"{trained}: {len(trained.networks)} networks, {len(trained)} checkpoints")


# The SANE


def sane(arguments: argparse.Namespace) -> None:
    """Pretrain on the real forms and on the toys; with --minutes as many steps as fit."""
    start = None if arguments.start is None else load_sane(arguments.start)
    config = SANEConfig(
        model_width=arguments.width,
        heads=arguments.heads,
        layers=arguments.layers,
        latent_width=arguments.latent,
        places=arguments.places,
    )
    config = config if start is None else start.config
    options = PretrainOptions(
        steps=arguments.steps or 1,
        batch=arguments.batch,
        accumulate=arguments.accumulate,
        lr=arguments.lr,
        noise=arguments.noise,
        views=arguments.views,
        side=arguments.side,
        hidden=arguments.hidden,
        canonical=not arguments.in_file_order,
        balance="zoos",  # the architectures of each
        save_every=1000,
        log_every=20,
    )
    out = arguments.work / "sane.safetensors"
    with process_group(arguments.device) as device:
        options, zoos = replace(options, device=device), _seen(arguments.work, arguments.toys)
        started, report = time.monotonic(), _Lines()
        datasets = prepare_datasets(zoos, config, options, report)
        _say(f"{time.monotonic() - started:.0f} s to order and cut {len(datasets)} data sets")
        if not arguments.steps:
            probe = partial(pretrain, zoos, config, datasets=datasets, start=start)
            options = _steps_that_fit(probe, options, started, arguments)
        begun: dict[str, Any] = {"datasets": datasets, "start": start}
        model = pretrain(zoos, config, options, out, resume=True, report=report, **begun)
        if not World.current().is_first:
            return
    told = read_metadata(out)
    told |= {"data": "all but a fifth of the real forms' networks and the toys' evaluation pools"}
    save_sane(model, arguments.work / "sane-half.safetensors", told, torch.float16)


def _seen(work: Path, toys: int = 1) -> list[Zoo]:
    """Return what pretraining sees of all zoos, the toys so many times."""
    real = Zoo.open(work / "real-forms")
    unseen = evaluation_pool(real, UNSEEN)
    paths = [*work.glob("part1/*"), *sorted(work.glob("part3/*")) * toys]
    others = [Zoo.open(path) for path in paths if is_zoo(path)]
    return [real.where(lambda entry: entry.network not in unseen), *others]


def _steps_that_fit(
    probe: Callable[[PretrainOptions, Path], object],
    options: PretrainOptions,
    started: float,
    arguments: argparse.Namespace,
) -> PretrainOptions:
    """Return the options with as many steps as the minutes from `started` on allow, after a few for trial."""
    plan = arguments.work / "sane.steps.json"
    out = arguments.work / "sane.safetensors"
    if (
        plan.exists() and state_path(out).exists()
    ):  # a resumed run takes the steps that it began with
        return replace(options, steps=json.loads(plan.read_text()))
    if arguments.minutes is None:
        sys.exit("name --steps or --minutes")
    trial = arguments.work / "probe.safetensors"
    log_path(trial).unlink(missing_ok=True)
    probe(replace(options, steps=PROBE_STEPS, log_every=PROBE_STEPS // 3), trial)
    lines = read_log(log_path(trial))
    each = (lines[-1]["seconds"] - lines[0]["seconds"]) / (lines[-1]["step"] - lines[0]["step"])
    left = 60 * arguments.minutes - (time.monotonic() - started)
    steps = max(PROBE_STEPS, int(0.95 * left / each))
    _say(f"{each * 1e3:.1f} ms a step: {steps} steps")
    plan.write_text(json.dumps(steps))
    return replace(options, steps=steps)


# What came of it


def measure(arguments: argparse.Namespace) -> None:
    """Decode the real forms that pretraining has not seen, and run them on their test images."""
    model = load_sane(arguments.work / "sane.safetensors", arguments.device)
    real, recipe = Zoo.open(arguments.work / "real-forms"), Recipe.read(RECIPE)
    unseen = evaluation_pool(real, UNSEEN)
    last = {entry.network: entry for entry in real.entries if entry.network in unseen}
    loaded: dict[str, TrainingImages] = {}
    rows = []
    for entry in last.values():
        task = str(entry.properties["dataset"])
        if task not in loaded:
            found = load_images(recipe.tasks[task], arguments.work / "images")
            loaded[task] = found.on(arguments.device)
        rows.append(_decoded_accuracy(model, real, entry, loaded[task]))
        _say(json.dumps(rows[-1]))
    learnt = [row["kept"] for row in rows if row["accuracy"] > 2 * row["chance"]]
    told = {"networks": rows, "median_kept": median(learnt) if learnt else None}
    (arguments.work / "measured.json").write_text(json.dumps(told, indent=1) + "\n")
    _say(f"of {len(learnt)} networks that learnt, the median keeps {told['median_kept']}")


def _decoded_accuracy(model: Any, real: Zoo, entry: Entry, given: TrainingImages) -> dict[str, Any]:
    """Return a network's accuracy as it is, decoded, and decoded with statistics measured anew."""
    size = int(entry.properties["size"])
    x, y = resized(given.x_test[:MEASURED], size), given.y_test[:MEASURED]
    module = real.module(entry).to(x.device)
    graph, before = real.graph(entry), accuracy(module, x, y)
    decoded = decode(model, encode(model, graph).values, graph)
    load_into(module.cpu(), decoded.replace({p.key: t.cpu() for p, t in decoded.items()}))
    module.to(x.device)
    after = accuracy(module, x, y)
    training = resized(given.x_train[: NORM_BATCHES * NORM_BATCH], size)
    with torch.no_grad():
        condition(module, training, NORM_BATCHES, NORM_BATCH, torch.Generator().manual_seed(0))
    anew = accuracy(module, x, y)
    return {
        "network": entry.network,
        "chance": 1 / int(entry.factory["classes"]),
        "accuracy": before,
        "decoded": after,
        "measured_anew": anew,
        "kept": anew / before if before else 0.0,
    }


def export(arguments: argparse.Namespace) -> None:
    """Write what comes back: four files of the zoo in half precision, and with the first part SANE and notes.

    The parts in one folder are the zoo.
    """
    work, out = arguments.work, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if is_zoo(work / "real-forms") and not is_zoo(work / "half"):
        real = Zoo.open(work / "real-forms")
        writer = ShardWriter(work / "half", ZooIndex("real-forms", (), {}), PART_BYTES)
        for entry in real.entries:
            writer.add(replace(entry, file=""), _in_half(real.state_dict(entry)))
        writer.commit()
    shards = sorted((work / "half").glob("*.safetensors"))
    for path in shards[PARTS * arguments.part :][:PARTS]:
        shutil.copy(path, out)
    if not arguments.part:
        if (work / "sane-half.safetensors").exists():
            shutil.copy(work / "sane-half.safetensors", out / "sane.safetensors")
        with tarfile.open(out / "notes.tar.gz", "w:gz") as notes:
            for path in _notes(work):
                notes.add(path, f"{path.parent.name}-{path.name}")
    for path in sorted(out.iterdir()):
        _say(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
    _say(f"part {arguments.part} of {math.ceil(len(shards) / PARTS)}")


def record(arguments: argparse.Namespace) -> None:
    """Write the card of the zoo and how the SANE was trained to benchmarks/results/."""
    work, results = arguments.work, ROOT / "benchmarks" / "results"
    lines = read_log(log_path(work / "sane.safetensors"))
    told = read_metadata(work / "sane.safetensors")
    last = lines[-20:]
    losses = {
        name: sum(line[name] for line in last) / len(last)
        for name in ("values", "side", "hidden", "contrast")
    }
    found = {
        "hardware": arguments.hardware,
        "steps": lines[-1]["step"],
        "seconds": lines[-1]["seconds"],
        "losses": losses,
        "recipe": told["recipe"],
        "zoos": told["zoos"],
    }
    (results / "real_forms.json").write_text(json.dumps(found, indent=1) + "\n")
    shown = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
    page = [
        f"Trained on {arguments.hardware}. The SANE: {found['steps']} steps in {found['seconds']:.0f} s; losses at the end: {shown}.",
        f"Of the variance of hidden tokens, {losses['hidden']:.3f} is left when the others are shown.",
        "",
        (work / "real-forms" / "card.md").read_text().partition("\n")[2].strip(),
    ]
    (results / "real_forms.md").write_text("\n".join(page) + "\n")


def _notes(work: Path) -> Iterator[Path]:
    named = (
        "real-forms/card.md",
        "measured.json",
        "sane.safetensors.jsonl",
        "half/index.jsonl",
    )
    yield from (work / name for name in named if (work / name).exists())


class _Lines:
    """Prints a line every few seconds, and every announcement."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, event: Progress) -> None:
        if event.is_announcement:
            _say(event.job)
        elif time.monotonic() - self._last >= 10 or event.done == event.total:
            self._last = time.monotonic()
            _say(f"{event.job} {event.done}/{event.total} {event.note}")


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
