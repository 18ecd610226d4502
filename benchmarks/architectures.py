"""Do prompts of another architecture help?

    python benchmarks/architectures.py --data ../shared/data [--seeds 5] [--resnet-seeds 3]

The small CNN's prompts (mnist-cnn and animals-cnn, relu) initialize a CNN of twice its width on Fashion-MNIST (10,000
images); a published file of a ResNet-20 for CIFAR-10 (91.5 %) initialises ResNet-32 and ResNet-56 on 2,000 CIFAR-10 images,
by the command line, as a user would: `sane-init networks:resnet_32 --task images.npz --prompts resnet20-12fca82f.th`. Test
accuracy after 0, 1, 2 and, for the CNN, 5 epochs (Adam, 1e-3, batch 64). What `sane-init` chooses, it chooses on images
held out of the training images. A finished (case, seed) is kept in runs/.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoodata
from safetensors.torch import load_file
from torch import nn

from sane_plugins.architectures import resnet, small_cnn, wide_cnn
from sane_plugins.autoencoder import embedded_sane
from sane_plugins.generation import choose_prompts
from sane_plugins.initialize import InitializeOptions, TrainOptions, initialize, train_epochs
from sane_plugins.initialize.candidates import CandidateBuilder
from sane_plugins.initialize.kinds import CandidateSpec, Kind
from sane_plugins.initialize.problem import prepare
from sane_plugins.runtime import seeded
from sane_plugins.tasks import Task, accuracy, load_task
from sane_plugins.weights import WeightGraph

PUBLISHED = "checkpoints/akamaster_pytorch_resnet_cifar10/resnet20-12fca82f.th"
COMPARED = (1, 2)
Run = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A target, its task, and the prompts."""

    name: str
    make: Callable[[], nn.Module]
    task: Task
    epochs: int
    methods: Mapping[str, Callable[[Case, Run], nn.Module]]
    seed: int
    prompts: Sequence[WeightGraph] = ()
    options: InitializeOptions = field(default_factory=InitializeOptions)
    images: Path = Path()
    file: Path = Path()
    depth: int = 0


def main() -> None:
    """Measure every case with every seed; exit 1 where sane-init is not ahead after 1 and 2 epochs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--zoos", type=Path, default=zoodata.RUNS / "zoos")
    parser.add_argument("--dataset", default="fashion_mnist", help="for the wide CNN")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--resnet-seeds", type=int, default=3)
    arguments = parser.parse_args()
    for seed in range(arguments.seeds):
        _keep(f"wide-{arguments.dataset}", seed, partial(_wide, arguments, seed))
    for seed in range(arguments.resnet_seeds):
        for depth in (32, 56):
            _keep(f"resnet-{depth}-file", seed, partial(_resnet, arguments.data, depth, seed))
    _publish()


def _wide(arguments: argparse.Namespace, seed: int) -> Case:
    torch.set_num_threads(1)
    task = load_task(arguments.data / "datasets" / f"{arguments.dataset}.npz", 28)
    names = [name for name in ("mnist-cnn", "animals-cnn") if name[:6] not in arguments.dataset]
    zoos = zoodata.zoos(arguments.data, arguments.zoos, names)
    graphs = [graph for zoo in zoos for graph in choose_prompts(small_cnn(), zoo, 12).graphs]
    return Case(
        name="small CNN to twice its width",
        make=partial(wide_cnn, 1, len(task.classes)),
        task=task.subset(10_000, torch.Generator().manual_seed(seed)),
        epochs=5,
        methods={"default": _default, "prompt, expanded": _expanded, "sane-init": _by_library},
        seed=seed,
        prompts=graphs,
        options=InitializeOptions(seed=seed),
    )


def _resnet(data: Path, depth: int, seed: int) -> Case:
    images = _few_images(data / "datasets" / "cifar10.npz", 2000, seed)
    return Case(
        name=f"ResNet-20 to ResNet-{depth}",
        make=partial(resnet, depth=depth),
        task=load_task(images),
        epochs=2,
        methods={"default": _default, "sane-init": _by_command},
        seed=seed,
        images=images,
        file=data / PUBLISHED,
        depth=depth,
    )


def _few_images(path: Path, count: int, seed: int) -> Path:
    """Write a file with some of the training images, and all test images, of another."""
    few = zoodata.RUNS / "architectures" / f"{path.stem}-{count}-{seed}.npz"
    few.parent.mkdir(parents=True, exist_ok=True)
    with np.load(path) as stored:
        chosen = np.random.default_rng(seed).permutation(len(stored["y_train"]))[:count]
        train = {key: stored[key][chosen] for key in ("x_train", "y_train")}
        np.savez(few, **train, x_test=stored["x_test"], y_test=stored["y_test"])
    return few


def _keep(name: str, seed: int, make: Callable[[], Case]) -> None:
    path = zoodata.RUNS / "architectures" / f"{name}-{seed}.json"
    if not path.exists():
        run = _measured(make())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run))


def _measured(case: Case) -> Run:
    run: Run = {"case": case.name, "images": len(case.task.y_train), "curves": {}}
    for method, make in case.methods.items():
        start = time.perf_counter()
        module = make(case, run)
        seconds = time.perf_counter() - start
        curve = [accuracy(module, case.task.x_test, case.task.y_test)]
        rng = torch.Generator().manual_seed(case.seed)
        curve += train_epochs(module, case.task, case.epochs, TrainOptions(), rng)
        run["curves"][method] = curve
        told = [round(x, 3) for x in curve]
        print(
            f"{case.name} {case.seed} {method}: {told} {seconds:.0f} s", file=sys.stderr, flush=True
        )
    return run


def _default(case: Case, _: Run) -> nn.Module:
    with seeded(torch.Generator().manual_seed(case.seed)):
        return case.make()


def _expanded(case: Case, _: Run) -> nn.Module:
    problem = prepare(case.make, case.task, case.prompts, embedded_sane(), case.options)
    return CandidateBuilder(problem).build(CandidateSpec(Kind.PROMPT)).module


def _by_library(case: Case, run: Run) -> nn.Module:
    found = initialize(case.make, case.task, case.prompts, embedded_sane(), case.options)
    run["chosen"] = found.rows[0].name
    run["rows"] = [
        {"name": r.name, "kind": r.kind, "before": r.before, "curve": r.curve} for r in found.rows
    ]
    return found.module


def _by_command(case: Case, run: Run) -> nn.Module:
    """Initialise as a user does: a function that builds the network, a file of images, and one of weights."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(case.file, folder)
        shutil.copy(case.images, Path(folder) / "images.npz")
        (Path(folder) / "networks.py").write_text(
            "from functools import partial\nfrom sane_plugins.architectures import resnet\n"
            f"def resnet_{case.depth}(classes=10):\n"
            f"    return resnet(classes=classes, depth={case.depth})\n"
        )
        result = subprocess.run(
            [
                *(sys.executable, "-c", "from sane_plugins.cli.initialize import main; main()"),
                *(f"networks:resnet_{case.depth}", "--task", "images.npz"),
                *("--prompts", case.file.name, "--seed", str(case.seed)),
                *("-o", "initial.safetensors", "--json"),
            ],
            cwd=folder,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        told = json.loads(result.stdout)
        weights = load_file(Path(folder) / "initial.safetensors")
    run["chosen"] = next(row["name"] for row in told["rows"] if row["chosen"])
    run["rows"] = told["rows"]
    module = case.make()
    module.load_state_dict(weights)
    return module


def _publish() -> None:
    runs = [
        json.loads(path.read_text())
        for path in sorted((zoodata.RUNS / "architectures").glob("*.json"))
    ]
    lines: list[str] = []
    verdicts: list[str] = []
    for case in dict.fromkeys(run["case"] for run in runs):
        found = [run for run in runs if run["case"] == case]
        lines += _table(case, found)
        means = {m: _mean(found, m) for m in ("default", "sane-init")}
        ahead = [means["sane-init"][e] - means["default"][e] for e in COMPARED]
        told = " and ".join(f"{gain:+.3f}" for gain in ahead)
        verdicts.append(
            f"- {'met' if min(ahead) > 0 else 'MISSED'}: {case}, ahead of the default after 1 and 2 epochs ({told})"
        )
    text = "\n".join([*lines, *verdicts, ""])
    (zoodata.RESULTS / "architectures.md").write_text(text)
    (zoodata.RESULTS / "architectures.json").write_text(json.dumps(runs) + "\n")
    print(text)
    sys.exit(any("MISSED" in line for line in verdicts))


def _table(case: str, runs: Sequence[Run]) -> list[str]:
    epochs = [e for e in (0, 1, 2, 5) if e < len(runs[0]["curves"]["default"])]
    chosen = ", ".join(run["chosen"] for run in runs)
    lines = [
        f"{case} ({len(runs)} seeds, {runs[0]['images']} images; chosen: {chosen})",
        "",
        f"| initialisation | {' | '.join(f'epoch {e}' for e in epochs)} |",
        "|---" * (len(epochs) + 1) + "|",
    ]
    for method in runs[0]["curves"]:
        cells = [_cell([run["curves"][method][e] for run in runs]) for e in epochs]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return [*lines, ""]


def _mean(runs: Sequence[Run], method: str) -> list[float]:
    return [statistics.mean(x) for x in zip(*(run["curves"][method] for run in runs), strict=True)]


def _cell(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {spread:.3f}"


if __name__ == "__main__":
    main()
