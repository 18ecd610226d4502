"""Does `sane-init` help on tasks that the prompts' zoos do not hold?

    python benchmarks/new_tasks.py --data ../shared/data [--zoos runs/zoos] [--task usps ...] [--seeds 5] [--held-out]

Small CNN (relu) on five data sets in turn. Prompts come from the zoos of small CNNs on other data sets; for colour
images they are of another architecture. Each seed draws at most 10,000 training images; every method then trains on all
of them in the same way (Adam, 1e-3, batch 64). What `sane-init` chooses, it chooses on images held out of these; test
images only measure. Options were settled on animals, USPS and grey CIFAR-10. A finished (task, seed) is kept in runs/.
With `--held-out`, a fifth of the training images is put aside before anything else, and measures instead of the test images:
those of pneumonia come from another source than its training images, so that more training is worse on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import zoodata
from initialize import IMAGES, Setting, best_default_fitted, default, fitted, loaded

from sane_plugins.architectures import small_cnn, small_cnn_size
from sane_plugins.autoencoder import SANE, embedded_sane
from sane_plugins.generation import choose_prompts
from sane_plugins.initialize import (
    Initialization,
    InitializeOptions,
    TrainOptions,
    initialize,
    train_epochs,
)
from sane_plugins.tasks import Task, accuracy, load_task
from sane_plugins.weights import from_module
from sane_plugins.zoo import Zoo

TASKS: Mapping[str, str] = {
    "fashion_mnist": "",
    "usps": "",
    "animal_mnist": "animals-cnn",
    "pneumoniamnist_subset": "",
    "cifar10": "cifar10-cnn",
}
"""Data sets, and the zoo that is left out for each."""
TUNED = ("usps", "animal_mnist")
ZOOS = ("mnist-cnn", "animals-cnn", "cifar10-cnn")
SHOWN = (0, 1, 2, 5, 25)
COMPARED = (1, 2, 5)
TARGET_EPOCH = 5
DEFAULT, RIVAL, OURS = "default", "best prompt, fine-tuned", "sane-init"
METHODS = (DEFAULT, "default, classifier fitted, best of 3", RIVAL, OURS)
Run = dict[str, Any]


def main() -> None:
    """Run what is missing, and write the table of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--zoos", type=Path, default=zoodata.RUNS / "zoos")
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--held-out", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    zoos = zoodata.zoos(arguments.data, arguments.zoos, list(ZOOS))
    out = "new_tasks_held_out" if arguments.held_out else "new_tasks"
    sane = embedded_sane()
    for seed in range(arguments.seeds):
        for name in arguments.task or TASKS:
            path = _kept(out, name, seed)
            if not path.exists():
                task = _task(name, seed, arguments)
                run = _measured(name, task, seed, zoos, sane)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(run))
    _publish(out)


def _kept(out: str, name: str, seed: int) -> Path:
    return zoodata.RUNS / out.replace("_", "-") / f"{name}-{seed}.json"


def _task(name: str, seed: int, arguments: argparse.Namespace) -> Task:
    task = load_task(arguments.data / "datasets" / f"{name}.npz")
    task = task.resized(small_cnn_size(task.channels))
    if arguments.held_out:
        task = task.held_out(0.2, torch.Generator().manual_seed(1000 + seed))
    return task.subset(IMAGES, torch.Generator().manual_seed(seed))


def _measured(name: str, task: Task, seed: int, zoos: Sequence[Zoo], sane: SANE) -> Run:
    target = small_cnn(task.channels, len(task.classes))
    chosen = [choose_prompts(target, zoo, 12).graphs for zoo in zoos if zoo.name != TASKS[name]]
    fitting = [graphs for graphs in chosen if graphs[0].size == chosen_size(target)] or chosen[:2]
    prompts = tuple(graph for graphs in fitting for graph in graphs)
    setting = Setting(task=task, prompts=prompts, sane=sane, seed=seed)
    run: Run = {"images": len(task.y_train), "prompts": [p.source for p in prompts], "methods": {}}
    makers: Mapping[str, Callable[[Setting], Any]] = {
        DEFAULT: default,
        METHODS[1]: best_default_fitted,
        RIVAL: _best_prompt,
        OURS: partial(_ours, run),
    }
    for method, make in makers.items():
        start = time.perf_counter()
        module = make(setting)
        seconds = time.perf_counter() - start
        curve = [accuracy(module, task.x_test, task.y_test)]
        start = time.perf_counter()
        curve += train_epochs(
            module, task, max(SHOWN), TrainOptions(), torch.Generator().manual_seed(seed)
        )
        epoch = (time.perf_counter() - start) / max(SHOWN)
        run["methods"][method] = {"curve": curve, "seconds": seconds, "epoch": epoch}
        few = [round(curve[e], 3) for e in SHOWN]
        print(f"{name} {seed} {method}: {few} {seconds:.1f} s", file=sys.stderr, flush=True)
    return run


def chosen_size(target: torch.nn.Module) -> int:
    """Return the number of values of the target."""
    return sum(p.numel() for p in target.parameters())


def _best_prompt(setting: Setting) -> torch.nn.Module:
    """Take the prompt whose fitted classifier is best on held-out images, as `sane-init` scores it."""
    data = setting.task.held_out(0.2, torch.Generator().manual_seed(setting.seed))
    plan = _planned(setting, data)
    scores = [
        accuracy(fitted(m, data), data.x_test, data.y_test)
        for m in (loaded(setting, plan(i)) for i in range(len(setting.prompts)))
    ]
    return fitted(loaded(setting, plan(scores.index(max(scores)))), setting.task)


def _planned(setting: Setting, data: Task) -> Callable[[int], dict[str, torch.Tensor]]:
    from sane_plugins.initialize.problem import prepare

    make = partial(small_cnn, data.channels, len(data.classes))
    problem = prepare(make, data, setting.prompts, setting.sane, InitializeOptions())
    transfer = problem.sane_transfer
    count = len(transfer.aligned)
    default = from_module(make())
    return lambda number: transfer.direct(number % count, default) if count else {}


def _ours(run: Run, setting: Setting) -> torch.nn.Module:
    make = partial(small_cnn, setting.task.channels, len(setting.task.classes))
    options = InitializeOptions(seed=setting.seed)
    found: Initialization = initialize(make, setting.task, setting.prompts, setting.sane, options)
    run["chosen"], run["notes"] = found.rows[0].name, list(found.notes)
    run["rows"] = [
        {"name": r.name, "kind": r.kind, "before": r.before, "curve": r.curve} for r in found.rows
    ]
    return found.module


def _publish(out: str) -> None:
    paths = {name: [_kept(out, name, seed) for seed in range(99)] for name in TASKS}
    runs = {
        n: [json.loads(p.read_text()) for p in found if p.exists()] for n, found in paths.items()
    }
    runs = {name: found for name, found in runs.items() if found}
    lines: list[str] = []
    lost: list[str] = []
    won: list[str] = []
    for name, found in runs.items():
        lines += _table(name, found)
        for text, is_met in _checks(found):
            (won if is_met else lost).append(f"{name}: {text}")
    text = "\n".join(
        [*lines, "", *(f"- met: {x}" for x in won), *(f"- MISSED: {x}" for x in lost), ""]
    )
    (zoodata.RESULTS / f"{out}.md").write_text(text)
    (zoodata.RESULTS / f"{out}.json").write_text(json.dumps(runs) + "\n")
    print(text)
    sys.exit(bool(lost))


def _table(name: str, runs: Sequence[Run]) -> list[str]:
    tuned = ", options were settled on it" if name in TUNED else ""
    chosen = ", ".join(run["chosen"] for run in runs)
    lines = [
        f"{name} ({len(runs)} seeds, {runs[0]['images']} images{tuned}; chosen: {chosen})",
        "",
        f"| initialisation | {' | '.join(f'epoch {e}' for e in SHOWN)} | seconds |",
        "|---" * 7 + "|",
    ]
    for method in METHODS:
        cells = [_cell([run["methods"][method]["curve"][e] for run in runs]) for e in SHOWN]
        seconds = statistics.mean(run["methods"][method]["seconds"] for run in runs)
        lines.append(f"| {method} | {' | '.join(cells)} | {seconds:.1f} |")
    cells = [_cell([_at_cost(run, e) for run in runs]) for e in SHOWN]
    return [*lines, f"| {RIVAL}, for sane-init's seconds more | {' | '.join(cells)} | |", ""]


def _at_cost(run: Run, epoch: int) -> float:
    """Return the rival's accuracy after as many epochs more as `sane-init` takes seconds for."""
    rival = run["methods"][RIVAL]
    more = (run["methods"][OURS]["seconds"] - rival["seconds"]) / rival["epoch"]
    return float(rival["curve"][min(max(SHOWN), epoch + round(max(0.0, more)))])


def _checks(runs: Sequence[Run]) -> list[tuple[str, bool]]:
    ours, plain = _mean(runs, OURS), _mean(runs, DEFAULT)
    ahead = {e: ours[e] - plain[e] for e in (*COMPARED, max(SHOWN))}
    told = ", ".join(f"{e}: {gain:+.3f}" for e, gain in ahead.items() if e in COMPARED)
    speed = next((e for e, a in enumerate(ours) if a >= plain[TARGET_EPOCH]), max(SHOWN) + 1)
    best = max(_mean(runs, method)[TARGET_EPOCH] for method in METHODS)
    return [
        (
            f"better than the default after 1, 2 and 5 epochs ({told})",
            all(ahead[e] > 0 for e in COMPARED),
        ),
        (
            f"reaches the default's accuracy of epoch {TARGET_EPOCH} in half the epochs ({speed})",
            speed <= TARGET_EPOCH / 2,
        ),
        (
            f"as good as the default after {max(SHOWN)} epochs ({ahead[max(SHOWN)]:+.3f})",
            ahead[max(SHOWN)] >= 0,
        ),
        (
            f"within a point of the best method at epoch {TARGET_EPOCH} ({ours[TARGET_EPOCH] - best:+.3f})",
            ours[TARGET_EPOCH] > best - 0.01,
        ),
    ]


def _mean(runs: Sequence[Run], method: str) -> list[float]:
    curves = [run["methods"][method]["curve"] for run in runs]
    return [statistics.mean(values) for values in zip(*curves, strict=True)]


def _cell(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {spread:.3f}"


if __name__ == "__main__":
    main()
