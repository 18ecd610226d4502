"""Do a small transformer's weights, or mimetic attention, help a larger transformer on few photos?

    python benchmarks/transformers.py --data ../shared/data [--tasks photos10b] [--seeds 2] [--methods default mimetic graft]

The target is timm's vit_tiny_patch16_224 at 64 pixels: 192 channels, 12 blocks, 3 heads. The prompt is another ViT (128
channels, 6 blocks, 4 heads, patches of 8 pixels at 32), trained here for some minutes on photos of 100 other classes. 2,000
training images, AdamW with a one-cycle rate, three epochs; test accuracy after each, and before, where the classifier of a
graft is fitted in closed form, and that of the others also (`fitted`). A finished run is kept in runs/.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy

from sane_plugins.architectures import import_torchvision
from sane_plugins.grafting import (
    Preparation,
    PromptInfo,
    PromptNetwork,
    find_classifier,
    fit_classifier,
    transfer_methods,
)
from sane_plugins.tasks import Task, accuracy, load_task
from sane_plugins.weights import copy_module, from_module

IMAGES, SIZE, EPOCHS, BATCH, RATE = 2000, 64, 3, 50, 1e-3
PROMPT_SIZE, PROMPT_BATCH, PROMPT_RATE, SHIFT = 32, 128, 2e-3, 3


def build_prompt(classes: int = 100) -> nn.Module:
    """Return an untrained prompt."""
    import timm

    network: nn.Module = timm.models.VisionTransformer(
        img_size=PROMPT_SIZE, patch_size=8, embed_dim=128, depth=6, num_heads=4, num_classes=classes
    )
    return network


def build_target(classes: int) -> nn.Module:
    """Return an untrained target."""
    import timm

    name = "vit_tiny_patch16_224"
    network: nn.Module = timm.create_model(name, img_size=SIZE, num_classes=classes)
    return network


def read_photos(archive: Path, each: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return photos (N, 3, H, W) of 0 to 1 and their labels, `each` per class."""
    with zipfile.ZipFile(archive) as file:
        names = [name for name in file.namelist() if name.lower().endswith((".jpg", ".jpeg"))]
        folders: dict[str, list[str]] = {}
        for name in sorted(names):
            folders.setdefault(name.split("/")[-2], []).append(name)
        chosen = [(k, n) for k, f in enumerate(sorted(folders)) for n in folders[f][:each]]
        pixels = [
            np.asarray(Image.open(io.BytesIO(file.read(n))).convert("RGB")) for _, n in chosen
        ]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    return images, torch.tensor([k for k, _ in chosen])


def train_prompt(archive: Path, each: int, epochs: int) -> dict[str, Any]:
    """Train a prompt; return its state, and mean and deviation of its pixels."""
    torch.manual_seed(0)
    shifts = np.random.default_rng(0)
    images, labels = read_photos(archive, each)
    mean, deviation = images.mean((0, 2, 3)), images.std((0, 2, 3))
    images = (images - mean.view(1, 3, 1, 1)) / deviation.view(1, 3, 1, 1)
    module = build_prompt()
    steps = epochs * (len(labels) // PROMPT_BATCH)
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=0.05)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, PROMPT_RATE, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(labels))[: len(labels) // PROMPT_BATCH * PROMPT_BATCH]
        for batch in order.split(PROMPT_BATCH):
            x = images[batch]
            mirrored = torch.rand(len(batch)) < 0.5
            x[mirrored] = x[mirrored].flip(3)
            moves = tuple(int(s) for s in shifts.integers(-SHIFT, SHIFT + 1, 2))
            loss = cross_entropy(
                module(torch.roll(x, moves, (2, 3))), labels[batch], label_smoothing=0.1
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
    return {"state": module.state_dict(), "mean": mean, "dev": deviation}


def read_prompt(path: Path) -> PromptNetwork:
    """Return the prompt network that `train_prompt` has made."""
    stored = torch.load(path, weights_only=True)
    module = build_prompt()
    module.load_state_dict(stored["state"])
    module.eval()
    preparation = Preparation(
        mean=tuple(stored["mean"].tolist()),
        deviation=tuple(stored["dev"].tolist()),
        size=(PROMPT_SIZE, PROMPT_SIZE),
    )
    info = PromptInfo(name="small ViT", task="100 classes of photos", preparation=preparation)
    return PromptNetwork(
        graph=from_module(module), info=info, build=lambda: copy_module(module).eval()
    )


def run(method: str, task: Task, prompt: PromptNetwork, seed: int) -> dict[str, Any]:
    """Train one target; return test accuracies before and after each epoch."""
    torch.manual_seed(seed)
    module = build_target(len(task.classes))
    rng = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    if method != "default":
        transfer_methods()[method](module, prompt, task, rng)
    seconds = time.perf_counter() - start
    fitted = copy_module(module)
    layer = find_classifier(fitted, task.x_train[:8])
    assert layer is not None
    fit_classifier(fitted, layer, task.x_train, task.y_train)
    before = accuracy(fitted, task.x_test, task.y_test)
    if method not in ("default", "mimetic"):
        module = fitted
    scores = [accuracy(module, task.x_test, task.y_test)]
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=0.05)
    steps = EPOCHS * -(-len(task.y_train) // BATCH)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(EPOCHS):
        module.train()
        for batch in torch.randperm(len(task.y_train), generator=rng).split(BATCH):
            loss = cross_entropy(module(task.x_train[batch]), task.y_train[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
        scores.append(accuracy(module, task.x_test, task.y_test))
    return {"fitted": before, "accuracy": scores, "transfer_seconds": round(seconds, 1)}


def main() -> None:
    """Run what is not there yet, and print a line per run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["photos10b"])
    parser.add_argument("--methods", nargs="+", default=["default", "mimetic", "graft"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--prompt-images", type=int, default=100, help="per class")
    parser.add_argument("--prompt-epochs", type=int, default=6)
    parser.add_argument("--runs", type=Path, default=Path("runs/transformers"))
    options = parser.parse_args()
    import_torchvision()  # which timm imports
    options.runs.mkdir(parents=True, exist_ok=True)
    stored = options.runs / f"prompt-{options.prompt_images}-{options.prompt_epochs}.pt"
    if not stored.exists():
        archive = options.data / "datasets" / "tiny-imagenet-100.zip"
        torch.save(train_prompt(archive, options.prompt_images, options.prompt_epochs), stored)
    prompt = read_prompt(stored)
    for seed in range(options.seeds):
        for name in options.tasks:
            task = load_task(options.data / "datasets" / f"{name}.npz", size=SIZE)
            task = task.subset(IMAGES, torch.Generator().manual_seed(seed))
            for method in options.methods:
                path = options.runs / f"{name}-{method}-{seed}.json"
                if not path.exists():
                    path.write_text(json.dumps(run(method, task, prompt, seed)))
                print(name, method, seed, path.read_text(), flush=True)


if __name__ == "__main__":
    main()
