"""Train the compact photo networks that ship in the wheel as prompts.

    python tools/release/photo_networks.py --data ../shared/data --work runs/photo_networks [NAME...]
    python tools/release/photo_networks.py --ship [NAME...]

Takes `datasets/tiny-imagenet-100.zip` (100 classes of 500 images at 32 x 32 pixels); a tenth of each class is
held out. A killed run goes on where it was, and several may run beside each other on one folder: each takes
the next network that nobody trains. After every epoch `NAME.json` says how good the mean of the weights is on
the held-out images. `--ship` writes these means to `sane_plugins/data/photo_networks`, however far the
training is: the card in each file says how far.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import json
import math
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sane_plugins.architectures import build
from sane_plugins.atomic_files import write_whole
from sane_plugins.formats import save_safetensors
from sane_plugins.grafting import Preparation, PromptInfo
from sane_plugins.prompts import CARD_KEY, PromptCard
from sane_plugins.runtime import random_stream, seeded, set_threads
from sane_plugins.weights import from_module

MEAN, DEVIATION = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of ImageNet's channels, as is usual
HELD_OUT = 10  # one image in so many
SIZE = 64  # of the last epochs, pixels
SMALL_SIZE = 48  # of the first: half the work
BATCH = 64
LABEL_SMOOTHING = 0.1
WARM_UP = 0.15  # share of the schedule in which the learning rate rises
LEAST_RATE = 0.01  # share of the learning rate at the end
EMA_STEPS = 500  # over which the mean of the weights reaches back
SAVE_SECONDS = 180
OUT = Path(__file__).parents[2] / "sane_plugins" / "data" / "photo_networks"
LICENCE = "Apache-2.0; its images are under ImageNet's terms (research, non-commercial)"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one network is trained; `small_epochs` of the epochs take images of `SMALL_SIZE`."""

    factory: Mapping[str, Any]
    epochs: int
    small_epochs: int
    rate: float
    weight_decay: float
    optimizer: str = "AdamW"
    bf16: bool = False  # in products; of these networks only the depthwise one is not faster by it
    settings: Mapping[str, Any] = field(default_factory=dict)


RECIPES: Mapping[str, Recipe] = {
    "photo-mobilenet": Recipe(
        factory={"name": "small_mobilenet"},
        epochs=14,
        small_epochs=9,
        rate=3e-3,
        weight_decay=0.05,
    ),
    "photo-resnet": Recipe(
        factory={"name": "small_resnet"},
        epochs=18,
        small_epochs=12,
        rate=0.1,
        weight_decay=5e-4,
        optimizer="SGD",
        bf16=True,
        settings={"momentum": 0.9, "nesterov": True},
    ),
    "photo-vit": Recipe(
        factory={"name": "vit", "size": SIZE, "patch": 8, "width": 192, "depth": 4, "heads": 3},
        epochs=24,
        small_epochs=18,
        rate=1e-3,
        weight_decay=0.05,
        bf16=True,
    ),
    "photo-convnext": Recipe(
        factory={"name": "small_convnext"},
        epochs=18,
        small_epochs=12,
        rate=2e-3,
        weight_decay=0.05,
        bf16=True,
    ),
}


def main() -> None:
    """Train what is not finished and what nobody else trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/photo_networks"))
    parser.add_argument("--epochs", type=int, help="end here, from where the training is")
    parser.add_argument("--small", action="store_true", help=f"all epochs at {SMALL_SIZE} pixels")
    parser.add_argument("--ship", action="store_true", help="write what there is; train nothing")
    chosen = parser.parse_args()
    set_threads(1)
    chosen.work.mkdir(parents=True, exist_ok=True)
    photos = load_photos(chosen.data / "datasets" / "tiny-imagenet-100.zip", chosen.work)
    if chosen.ship:
        for name in chosen.names or RECIPES:
            if (chosen.work / f"{name}.pt").exists():
                ship(name, RECIPES[name], photos, chosen.work)
        return
    for name in chosen.names or RECIPES:
        with alone(chosen.work / f"{name}.lock") as is_alone:
            if is_alone:
                recipe = RECIPES[name]
                epochs = chosen.epochs or recipe.epochs
                small = epochs if chosen.small else recipe.small_epochs * epochs // recipe.epochs
                train(name, replace(recipe, epochs=epochs, small_epochs=small), photos, chosen.work)


# Images


@dataclass(frozen=True, eq=False)
class Photos:
    """Images (N, 3, 32, 32) of uint8, labels (N,) and names of classes; which images are held out."""

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    is_held_out: torch.Tensor


def load_photos(archive: Path, work: Path) -> Photos:
    """Decode the archive once, into a file under `work`."""
    decoded = work / "photos.npz"
    if not decoded.exists():
        write_whole(decoded, lambda path: _decode(archive, path))
    stored = np.load(decoded)
    labels = torch.from_numpy(stored["labels"]).long()
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=random_stream(0, "held out", int(label)))
        held_out[members[order[: len(members) // HELD_OUT]]] = True
    images = torch.from_numpy(stored["images"])
    return Photos(images, labels, tuple(map(str, stored["classes"])), held_out)


def _decode(archive: Path, path: Path) -> None:
    from PIL import Image

    with zipfile.ZipFile(archive) as stored:
        names = sorted(name for name in stored.namelist() if name.endswith(".JPEG"))
        folders = sorted({name.split("/")[0] for name in names})
        images = [
            np.asarray(Image.open(io.BytesIO(stored.read(name))).convert("RGB")) for name in names
        ]
    labels = np.array([folders.index(name.split("/")[0]) for name in names], dtype=np.uint8)
    with path.open("wb") as file:
        np.savez(
            file,
            images=np.stack(images).transpose(0, 3, 1, 2),
            labels=labels,
            classes=np.array(folders),
        )


def prepare(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize images (N, 3, 32, 32) of uint8 to `size` pixels and standardise them."""
    resized = F.interpolate(images.float() / 255, (size, size), mode="bilinear")
    return _standardise(resized)


def augment(images: torch.Tensor, size: int, rng: torch.Generator) -> torch.Tensor:
    """Cut a part of 0.7 to 1 of each side, anywhere; mirror half; resize and standardise."""
    count = len(images)
    side = 0.7 + 0.3 * torch.rand(count, 2, generator=rng)
    place = (2 * torch.rand(count, 2, generator=rng) - 1) * (1 - side)
    side[torch.rand(count, generator=rng) < 0.5, 0] *= -1
    affine = torch.cat((torch.diag_embed(side), place[..., None]), 2)
    grid = F.affine_grid(affine, [count, 3, size, size], align_corners=False)
    cut = F.grid_sample(images.float() / 255, grid, padding_mode="reflection", align_corners=False)
    return _standardise(cut)


def _standardise(images: torch.Tensor) -> torch.Tensor:
    mean, deviation = (torch.tensor(x)[:, None, None] for x in (MEAN, DEVIATION))
    return ((images - mean) / deviation).contiguous(memory_format=torch.channels_last)


# Training


class Run:
    """A network in training, the mean of its weights, and how far it is."""

    def __init__(self, name: str, recipe: Recipe, classes: int) -> None:
        self.name, self.recipe = name, recipe
        with seeded(random_stream(0, name)):
            self.module = build({**recipe.factory, "channels_in": 3, "classes": classes})
            self.mean = build({**recipe.factory, "channels_in": 3, "classes": classes})
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean.load_state_dict(self.module.state_dict())
        kernels = [p for p in self.module.parameters() if p.ndim > 1]
        others = [p for p in self.module.parameters() if p.ndim <= 1]
        groups = [
            {"params": kernels, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = getattr(torch.optim, recipe.optimizer)(
            groups, lr=recipe.rate, **recipe.settings
        )
        self.step, self.seconds = 0, 0.0
        self.log: list[dict[str, float]] = []
        self.plans: list[list[float]] = []  # from which epoch on how many were planned

    def save(self, path: Path) -> None:
        """Write all that it takes to go on."""
        parts = {"module": self.module, "mean": self.mean, "optimizer": self.optimizer}
        state: dict[str, Any] = {key: part.state_dict() for key, part in parts.items()}
        state |= {"step": self.step, "seconds": self.seconds, "log": self.log, "plans": self.plans}
        write_whole(path, lambda file: torch.save(state, file))

    def load(self, path: Path) -> None:
        """Go on where the run that wrote the file was."""
        state = torch.load(path, weights_only=True)
        for key in ("module", "mean", "optimizer"):
            getattr(self, key).load_state_dict(state[key])
        self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]
        self.plans = state.get("plans") or [[0.0, self.recipe.epochs]]

    def take_step(self, images: torch.Tensor, labels: torch.Tensor, done: float) -> torch.Tensor:
        """Take a step, with the learning rate of the share of the schedule that is done."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate * one_cycle(done)
        self.module.train()
        self.optimizer.zero_grad()
        with (
            torch.autocast(images.device.type, torch.bfloat16, enabled=self.recipe.bf16),
            sdpa_kernel(SDPBackend.MATH),  # the fused one's gradient is slower on a CPU
        ):
            loss = F.cross_entropy(self.module(images), labels, label_smoothing=LABEL_SMOOTHING)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 5.0)
        self.optimizer.step()
        self.step += 1
        self._follow()
        return loss.detach()

    @torch.no_grad()
    def _follow(self) -> None:
        weight = max(1 / EMA_STEPS, 1 / (1 + self.step / 5))
        pairs = zip(self.mean.state_dict().values(), self.module.state_dict().values(), strict=True)
        floats = [(a, b) for a, b in pairs if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], weight)


def one_cycle(done: float) -> float:
    """Return the learning rate, relative to its largest, at a share of the schedule."""
    if done < WARM_UP:
        return max(LEAST_RATE, done / WARM_UP)
    fall = (done - WARM_UP) / (1 - WARM_UP)
    return LEAST_RATE + (1 - LEAST_RATE) * (1 + math.cos(math.pi * min(1.0, fall))) / 2


def train(name: str, recipe: Recipe, photos: Photos, work: Path) -> None:
    """Train a network to the end of its schedule; its state is written every few minutes."""
    run, state = Run(name, recipe, len(photos.classes)), work / f"{name}.pt"
    if state.exists():
        run.load(state)
    training = (~photos.is_held_out).nonzero().flatten()
    per_epoch, epochs = len(training) // BATCH, recipe.epochs
    if not run.plans or run.plans[-1][1] != epochs:
        run.plans.append([round(run.step / per_epoch, 2), epochs])
    saved, started = time.monotonic(), time.monotonic() - run.seconds
    losses: list[torch.Tensor] = []
    while run.step < epochs * per_epoch:
        epoch, place = divmod(run.step, per_epoch)
        order = _order(name, epoch, len(training))
        chosen = training[order[place * BATCH : (place + 1) * BATCH]]
        size = SMALL_SIZE if epoch < recipe.small_epochs else SIZE
        images = augment(photos.images[chosen], size, random_stream(0, name, "cut", run.step))
        losses.append(run.take_step(images, photos.labels[chosen], run.step / epochs / per_epoch))
        run.seconds = time.monotonic() - started
        if run.step % per_epoch == 0:
            told = {"epoch": epoch + 1, "size": size, "loss": float(torch.stack(losses).mean())}
            losses.clear()
            accuracy = {"accuracy": held_out_accuracy(run.mean, photos)}
            run.log.append({**told, **accuracy, "minutes": round(run.seconds / 60, 1)})
            _say(name, f"of {epochs}", run.log[-1])
            write_whole(work / f"{name}.json", lambda path: path.write_text(json.dumps(run.log)))
        if run.step % per_epoch == 0 or time.monotonic() - saved > SAVE_SECONDS:
            run.save(state)
            saved = time.monotonic()


@cache
def _order(name: str, epoch: int, count: int) -> torch.Tensor:
    return torch.randperm(count, generator=random_stream(0, name, "order", epoch))


@torch.no_grad()
def held_out_accuracy(module: nn.Module, photos: Photos) -> float:
    """Return the share of held-out images that a network is right on."""
    module.eval()
    images, labels = photos.images[photos.is_held_out], photos.labels[photos.is_held_out]
    batches = zip(images.split(250), labels.split(250), strict=True)
    right = sum(int((module(prepare(x, SIZE)).argmax(1) == y).sum()) for x, y in batches)
    return right / len(labels)


# Shipping


def ship(name: str, recipe: Recipe, photos: Photos, work: Path) -> None:
    """Write the mean of a network's weights as float16, with a card that says where they come from."""
    run = Run(name, recipe, len(photos.classes))
    run.load(work / f"{name}.pt")
    module = run.mean.half()
    graph = from_module(module, name)
    accuracy = held_out_accuracy(run.mean.float(), photos)
    per_epoch = int((~photos.is_held_out).sum()) // BATCH
    card = PromptCard(
        info=PromptInfo(
            name=name,
            source="ships with sane-plugins; made by tools/release/photo_networks.py",
            task="100 classes of tiny-imagenet, 32 x 32 pixels",
            licence=LICENCE,
            classes=tuple(_class_name(folder) for folder in photos.classes),
            preparation=Preparation(mean=MEAN, deviation=DEVIATION, size=(SIZE, SIZE)),
        ),
        factory={**recipe.factory, "channels_in": 3, "classes": len(photos.classes)},
        record={
            "epochs": round(run.step / per_epoch, 2),
            "plans": [{"from_epoch": start, "epochs": planned} for start, planned in run.plans],
            "sizes": [entry["size"] for entry in run.log],
            "minutes": round(run.seconds / 60),
            "accuracy": accuracy,
            "held_out_images": int(photos.is_held_out.sum()),
            "training_images": int((~photos.is_held_out).sum()),
            "values": sum(x.numel() for x in run.mean.parameters()),
            "recipe": {k: v for k, v in asdict(recipe).items() if k != "factory"},
        },
    )
    OUT.mkdir(exist_ok=True)
    path = save_safetensors(graph, OUT / f"{name}.safetensors", {CARD_KEY: card.to_json()})
    _say(name, f"{path.stat().st_size / 1e6:.1f} MB", card.record)


def _class_name(folder: str) -> str:
    """Return `abacus, n02666196` for the folder `abacus_n02666196`."""
    words, _, number = folder.rpartition("_")
    return f"{words.replace('_', ' ')}, {number}"


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Yield whether no other process holds the lock; it is held within the block."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _say(name: str, *rest: object) -> None:
    print(time.strftime("%H:%M:%S"), name, *rest, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
