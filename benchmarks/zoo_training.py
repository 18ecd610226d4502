"""How long it takes to train a zoo many networks at once, against one network after the other.

    python benchmarks/zoo_training.py --data ../shared/data [--rounds N] [--alone K] [--device cuda]

200 small CNNs with drawn hyper-parameters, 12 epochs on 10,000 MNIST images, batch 64, measured on 4,000 test
and training images after epochs 0, 1, 2, 4, 8, 12. The networks are cut into groups as `zoo train` does. A
round takes as many groups, in a random order, as there are processes: they are trained at once, by one process
with one thread each (starting the processes included), and correct after that networks of theirs one by one, each
by a plain loop with `nn.Module` and `torch.optim`, on the default number of threads or on one, whichever a
first try finds faster. `--rounds N` stops after N rounds, and `--alone K` trains only the first K of each group one by
one; times of 200 networks are then those of the measured ones, scaled. What several processes add is measured
apart, on a few networks. A run that is stopped goes on where it was. Writes results/zoo_training.json and
zoo_training.md; exit code 1 where training at once takes more than half of the time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from sane_plugins.architectures import NO_TRUST
from sane_plugins.tasks import accuracy, load_task
from sane_plugins.zoo_training import (
    Hyperparameters,
    Schedule,
    TrainingImages,
    ZooOptions,
    build_initialized,
    train_zoo,
)
from sane_plugins.zoo_training.group_trainer import load_group_state
from sane_plugins.zoo_training.worker_processes import train_groups
from sane_plugins.zoo_training.zoo_trainer import draw_groups, network_factory, plan_jobs

RESULTS = Path(__file__).parent / "results"
OPTIONS = ZooOptions(name="speed", dataset="mnist")
TARGET = 0.5
_IMAGES, _TRIED_STEPS = 10_000, 40
_APART = 16, 2, 1  # networks, processes, epochs of the comparison of processes


def main() -> None:
    """Measure what is missing, print and write everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds datasets/")
    parser.add_argument("--rounds", type=int, help="how many rounds to measure; default: all")
    parser.add_argument(
        "--alone", type=int, help="networks of a group to train alone; default: all"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--restart", action="store_true", help="forget earlier measurements")
    chosen = parser.parse_args()
    images = mnist(chosen.data)
    options = replace(OPTIONS, device=chosen.device)
    path = RESULTS / "zoo_training.json"
    every = json.loads(path.read_text()) if path.exists() and not chosen.restart else {}
    fresh = {"rounds": [], "torch": torch.__version__, "used_processes": chosen.processes}
    result = every.setdefault(device_name(chosen.device), fresh)
    if "threads" not in result:
        result["threads"], result["tried_seconds"] = faster_threads(options, images)
    groups = len(draw_groups(options))
    order = torch.randperm(groups, generator=torch.Generator().manual_seed(0)).split(
        result["used_processes"]
    )
    for chosen_groups in order[len(result["rounds"]) : chosen.rounds]:
        found = compared(chosen_groups.tolist(), options, images, result, chosen.alone)
        result["rounds"].append(found)
        write(every)
        print(table(every), flush=True)
    if chosen.device == "cpu" and "processes" not in result:
        result["processes"] = processes(options, images)
    write(every)
    print(table(every))
    sys.exit(any(summary(found)["ratio"] > TARGET for found in every.values()))


def mnist(data: Path) -> TrainingImages:
    """Return the images that are trained on and measured with."""
    task = load_task(data / "datasets" / "mnist.npz").subset(
        _IMAGES, torch.Generator().manual_seed(0)
    )
    return TrainingImages(
        x_train=task.x_train, y_train=task.y_train, x_test=task.x_test, y_test=task.y_test
    )


def device_name(device: str) -> str:
    """Return the device as a person would call it."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    name = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "CPU")
    return f"{name}, {os.cpu_count()} cores"


def schedule_of(options: ZooOptions) -> Schedule:
    """Return the schedule that `zoo train` would follow."""
    return Schedule(
        epochs=options.epochs,
        batch=options.batch,
        keep=options.keep,
        measured=options.measured,
        seed=options.seed,
        save_every=None,
        device=options.device,
    )


def faster_threads(options: ZooOptions, images: TrainingImages) -> tuple[int, dict[int, float]]:
    """Return the number of threads, torch's default or one, that makes a plain loop faster; and seconds."""
    draw = draw_groups(options)[0][0]
    default, seconds = torch.get_num_threads(), {}
    for threads in {1, default}:
        torch.set_num_threads(threads)
        few = replace(images, x_train=images.x_train[:640], y_train=images.y_train[:640])
        short = replace(options, epochs=_TRIED_STEPS // 10, keep=())
        alone(draw, short, few)
        start = time.perf_counter()
        alone(draw, short, few)
        seconds[threads] = time.perf_counter() - start
    torch.set_num_threads(default)
    return min(seconds, key=lambda threads: seconds[threads]), seconds


def compared(
    indices: list[int],
    options: ZooOptions,
    images: TrainingImages,
    result: dict[str, Any],
    some: int | None,
) -> dict[str, Any]:
    """Train the networks of some groups at once, and one by one."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = plan_jobs(images, options, Path(folder), "", None, NO_TRUST)
        jobs = [jobs[index] for index in indices]
        start = time.perf_counter()
        for _ in train_groups(jobs, images, Path(folder), result["used_processes"]):
            pass
        at_once = time.perf_counter() - start
        ends = [load_group_state(job.state)[0]["measured"][str(options.epochs)] for job in jobs]
    default = torch.get_num_threads()
    torch.set_num_threads(result["threads"])
    start = time.perf_counter()
    by_one = [[alone(draw, options, images) for draw in job.draws[:some]] for job in jobs]
    one_by_one = time.perf_counter() - start
    torch.set_num_threads(default)
    differences = [
        row["test_accuracy"] - accuracy_alone
        for end, found in zip(ends, by_one, strict=True)
        for row, accuracy_alone in zip(end, found, strict=False)
    ]
    return {
        "groups": [(job.draws[0].act, job.draws[0].p, len(job.draws)) for job in jobs],
        "networks": sum(len(job.draws) for job in jobs),
        "at_once": at_once,
        "alone": sum(map(len, by_one)),
        "one_by_one": one_by_one,
        "accuracy_differences": differences,
    }


def alone(draw: Hyperparameters, options: ZooOptions, images: TrainingImages) -> float:
    """Train one network as anyone would; return its accuracy on the test images."""
    device, limit, found = options.device, options.measured, 0.0
    x, y, x_test, y_test = (
        t.to(device) for t in (images.x_train, images.y_train, images.x_test, images.y_test)
    )
    network = build_initialized(draw, network_factory(options, draw, 1, 10)).to(device)
    optimizer: torch.optim.Optimizer
    if draw.opt == "adam":
        optimizer = torch.optim.Adam(network.parameters(), draw.lr, weight_decay=draw.wd)
    else:
        optimizer = torch.optim.SGD(
            network.parameters(), draw.lr, momentum=0.9, weight_decay=draw.wd
        )
    for epoch in range(options.epochs + 1):
        if epoch in options.keep:
            found = accuracy(network, x_test[:limit], y_test[:limit])
            accuracy(network, x[:limit], y[:limit])
        if epoch == options.epochs:
            break
        network.train()
        for rows in schedule_of(options).order(epoch, len(y)).to(device).split(options.batch):
            optimizer.zero_grad()
            cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return found


def processes(options: ZooOptions, images: TrainingImages) -> dict[str, Any]:
    """Return the seconds of a small zoo with one process and with several, starting them included."""
    networks, count, epochs = _APART
    small = replace(options, networks=networks, epochs=epochs, keep=(0, epochs))
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in (1, count):
            start = time.perf_counter()
            train_zoo(images, small, Path(folder) / str(number), processes=number)
            seconds[str(number)] = time.perf_counter() - start
    return {"networks": networks, "epochs": epochs, "seconds": seconds}


def summary(found: dict[str, Any]) -> dict[str, float]:
    """Return the ratio of the times per network over all rounds, and the time of 200 networks."""
    rows = found["rounds"]
    each = [(row["at_once"] / row["networks"], row["one_by_one"] / row["alone"]) for row in rows]
    networks = [row["networks"] for row in rows]
    # Every round counts as much as it has networks, whether or not all of them were trained alone.
    at_once, one_by_one = (
        sum(pair[i] * n for pair, n in zip(each, networks, strict=True)) / sum(networks)
        for i in (0, 1)
    )
    ratios = [a / b for a, b in each]
    differences = [value for row in rows for value in row["accuracy_differences"]]
    minutes = OPTIONS.networks / 60
    return {
        "networks": sum(networks),
        "alone": sum(row["alone"] for row in rows),
        "ratio": at_once / one_by_one,
        "lowest": min(ratios),
        "highest": max(ratios),
        "minutes_at_once": at_once * minutes,
        "minutes_one_by_one": one_by_one * minutes,
        "accuracy_difference": median(map(abs, differences)),
    }


def write(every: dict[str, Any]) -> None:
    """Write what was measured, and the table."""
    (RESULTS / "zoo_training.json").write_text(json.dumps(every, indent=1) + "\n")
    (RESULTS / "zoo_training.md").write_text(table(every))


def table(every: dict[str, Any]) -> str:
    """Return the Markdown table."""
    lines = [
        "| device | networks at once, one by one | at once, 200 networks (processes) |"
        " one by one, 200 networks (threads) | ratio (lowest to highest round) | target |"
        " difference of accuracy (median) |",
        "|---|---|---|---|---|---|---|",
    ]
    for device, found in every.items():
        if not found["rounds"]:
            continue
        told = summary(found)
        lines.append(
            f"| {device} | {told['networks']}, {told['alone']}"
            f" | {told['minutes_at_once']:.1f} min ({found['used_processes']})"
            f" | {told['minutes_one_by_one']:.1f} min ({found['threads']})"
            f" | {told['ratio']:.2f} ({told['lowest']:.2f} to {told['highest']:.2f})"
            f" | at most {TARGET} | {told['accuracy_difference']:.4f} |"
        )
        if "processes" in found:
            seconds = found["processes"]["seconds"]
            few = f"{found['processes']['networks']} networks for {found['processes']['epochs']} epoch"
            told_seconds = " and ".join(f"{seconds[n]:.0f} s with {n}" for n in seconds)
            lines += ["", f"Processes ({device}; {few}, starting them included): {told_seconds}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
