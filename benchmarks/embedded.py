"""Make what ships in the wheel: the SANE, its prompt networks and its property heads.

    python benchmarks/embedded.py --data ../shared/data [--steps 4000]

Pretraining leaves out the evaluation pool of each zoo (40 % of its networks), from which
`benchmarks/properties.py` draws its test networks. A killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from sane_plugins.latent import checkpoint
from sane_plugins.latent.model import SANEConfig
from sane_plugins.progress import Progress
from sane_plugins.tasks.embed import SaneEncoder, StatisticsEncoder
from sane_plugins.tasks.heads import fit_head
from sane_plugins.tasks.predict import fingerprint, measure, save_heads
from sane_plugins.zoo.pretrain import PretrainOptions, pretrain
from sane_plugins.zoo.store import Entry, Zoo, evaluation_pool, import_published, write

OUT = Path(__file__).parents[1] / "sane_plugins" / "data"
RUNS = Path(__file__).parents[1] / "runs"
PROMPTS_PER_ACTIVATION = 6
PROPERTIES = ("test_accuracy", "gap", "epoch")


def main() -> None:
    """Run the stages that are asked for; each writes its file when it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--stage", choices=["sane", "prompts", "heads"], action="append")
    arguments = parser.parse_args()
    stages = arguments.stage or ["sane", "prompts", "heads"]
    zoos = [
        import_published(arguments.data / "zoos" / f"{name}.json")
        for name in ("mnist-cnn", "cifar10-cnn")
    ]
    if "sane" in stages:
        make_sane(zoos, arguments.steps)
    if "prompts" in stages:
        make_prompts(zoos)
    if "heads" in stages:
        make_heads(zoos)


def make_sane(zoos: list[Zoo], steps: int) -> None:
    """Pretrain on the networks outside the evaluation pools and ship the model as float16."""
    seen = [_outside(zoo, evaluation_pool(zoo)) for zoo in zoos]
    RUNS.mkdir(exist_ok=True)
    model = pretrain(
        seen, SANEConfig(), PretrainOptions(steps=steps), RUNS / "sane.safetensors",
        resume=True, report=_line,
    )  # fmt: skip
    told = checkpoint.read_metadata(RUNS / "sane.safetensors")
    told |= {"data": "mnist-cnn and cifar10-cnn, 60 % of the networks each"}
    checkpoint.save(model, OUT / "sane.safetensors", told, torch.float16)


def make_prompts(zoos: list[Zoo]) -> None:
    """Ship the best networks of each activation, one checkpoint each."""
    write(OUT / "prompts", "prompts", _prompts(zoos), force=True)


def make_heads(zoos: list[Zoo]) -> None:
    """Fit a head per property on all networks of both zoos, with the features of the shipped SANE."""
    model = checkpoint.load(OUT / "sane.safetensors")
    finite = [zoo.where(lambda entry: bool(entry.properties["finite"])) for zoo in zoos]
    pairs = [(zoo, entry) for zoo in finite for entry in zoo.entries]
    samples = measure(
        (zoo.graph(entry) for zoo, entry in pairs),
        [f"{zoo.name}-{entry.network}" for zoo, entry in pairs],
        {"sane": SaneEncoder(model), "statistics": StatisticsEncoder()},
        _line,
    )
    heads = {}
    for name in PROPERTIES:
        targets = np.array([float(entry.properties[name]) for _, entry in pairs])
        heads[name] = fit_head(name, samples, targets, sane=fingerprint(model), report=_line)
    save_heads(heads, OUT / "heads.safetensors")


def _prompts(zoos: list[Zoo]) -> Iterator[tuple[Entry, dict[str, torch.Tensor]]]:
    for zoo in zoos:
        for act in sorted({str(entry.properties["act"]) for entry in zoo.entries}):
            alike = zoo.where(lambda entry, act=act: entry.properties["act"] == act)  # type: ignore[misc]
            for entry in alike.best("test_accuracy", PROMPTS_PER_ACTIVATION).entries:
                named = Entry(
                    network=f"{zoo.name}-{entry.network}", checkpoint=entry.checkpoint,
                    factory=entry.factory, properties=entry.properties,
                )  # fmt: skip
                yield named, zoo.state_dict(entry)


def _outside(zoo: Zoo, pool: frozenset[str]) -> Zoo:
    return zoo.where(lambda entry: entry.network not in pool)


def _line(event: Progress) -> None:
    if event.done % 25 == 0 or event.done == event.total:
        clock = time.strftime("%H:%M:%S")
        print(
            clock, event.job, f"{event.done}/{event.total}", event.note, file=sys.stderr, flush=True
        )


if __name__ == "__main__":
    main()
