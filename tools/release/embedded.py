"""Make what ships in the wheel: the SANE, its prompt networks and its property heads.

    python tools/release/embedded.py --data ../shared/data [--zoos runs/zoos] [--steps N]

Pretraining takes the published zoos and those of `benchmarks/zoos.py`, and leaves out the evaluation pool of
each (40 % of its networks), from which the benchmarks draw their test networks. A killed run goes on where it
stopped; `torchrun --nproc-per-node 2 tools/release/embedded.py --stage sane` shares it between two processes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.append(
    str(Path(__file__).parents[2] / "benchmarks")
)  # zoos and splits are those of the figures
import zoodata
from zoodata import STEPS, outside_pool, recipe, task_of

from sane_plugins.autoencoder import (
    SANE,
    encode,
    fingerprint,
    load_sane,
    read_metadata,
    save_sane,
)
from sane_plugins.generation import DenoiserConfig, DenoiserExample, fit_denoiser, save_denoiser
from sane_plugins.pretraining import BehaviorLoss, World, pretrain, process_group
from sane_plugins.progress import Progress
from sane_plugins.properties import FitOptions, fit_heads, save_heads
from sane_plugins.tasks import SIZE, describe
from sane_plugins.zoo import Entry, Zoo, write_zoo

OUT = Path(__file__).parents[2] / "sane_plugins" / "data"
RUNS = Path(__file__).parents[2] / "runs"
SAMPLER_STEPS = 6000
STAGES = ["sane", "prompts", "heads", "sampler"]
PROMPTS_PER_ACTIVATION = {"mnist-cnn": 6, "animals-cnn": 6, "cifar10-cnn": 4}
PROPERTIES = ("test_accuracy", "gap", "epoch", "act", "opt")


def main() -> None:
    """Run the stages that are asked for; each writes its file when it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--zoos", type=Path, default=RUNS / "zoos")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--stage", choices=STAGES, action="append")
    arguments = parser.parse_args()
    stages = arguments.stage or STAGES
    zoos = zoodata.zoos(arguments.data, arguments.zoos)
    if "sane" in stages:
        make_sane(zoos, arguments.data, arguments.steps)
    if "prompts" in stages:
        make_prompts([zoo for zoo in zoos if zoo.name in PROMPTS_PER_ACTIVATION])
    if "heads" in stages:
        make_heads(zoos)
    if "sampler" in stages:
        make_sampler(zoos, arguments.data)


def make_sane(zoos: list[Zoo], data: Path, steps: int) -> None:
    """Pretrain on the networks outside the evaluation pools and ship the model as float16."""
    RUNS.mkdir(exist_ok=True)
    images = {zoo.name: task_of(zoo, data).x_train for zoo in zoos}
    with process_group("cpu"):
        model = pretrain(
            [outside_pool(zoo) for zoo in zoos],
            *recipe(steps),
            RUNS / "sane.safetensors",
            resume=True,
            report=_line,
            behaviour=BehaviorLoss(images),
        )
        if not World.current().is_first:
            return
    told = read_metadata(RUNS / "sane.safetensors")
    told |= {"data": "60 % of the networks of each zoo; the others are its evaluation pool"}
    save_sane(model, OUT / "sane.safetensors", told, torch.float16)


def make_prompts(zoos: list[Zoo]) -> None:
    """Ship the best networks of each activation, one checkpoint each."""
    write_zoo(OUT / "prompts", "prompts", _prompts(zoos), force=True)


def make_heads(zoos: list[Zoo]) -> None:
    """Fit a head per property on all networks of every zoo, with the features of the shipped SANE."""
    model = load_sane(OUT / "sane.safetensors")
    done = fit_heads(zoos, model, FitOptions(properties=PROPERTIES), _line)
    save_heads(done.heads, OUT / "heads.safetensors")


def make_sampler(zoos: list[Zoo], data: Path) -> None:
    """Train the denoiser on the last checkpoints of the networks outside the evaluation pools."""
    model = load_sane(OUT / "sane.safetensors")
    groups = [_examples(outside_pool(zoo), describe(task_of(zoo, data)), model) for zoo in zoos]
    config = DenoiserConfig(
        latent=model.config.latent_width,
        places=groups[0][0].places.shape[1],
        task=SIZE,
        sane=fingerprint(model),
    )
    training = fit_denoiser(groups, config, SAMPLER_STEPS, torch.Generator().manual_seed(0))
    for done, (denoiser, loss) in enumerate(training, 1):
        _line(Progress(job="denoiser", done=done, total=SAMPLER_STEPS, note=f"{loss:.3f}"))
        if done == SAMPLER_STEPS:
            save_denoiser(denoiser, OUT / "diffusion.safetensors")


def _examples(zoo: Zoo, task: torch.Tensor, model: SANE) -> list[DenoiserExample]:
    last: dict[str, Entry] = {}
    for entry in zoo.entries:
        known = last.get(entry.network)
        if known is None or float(entry.properties["epoch"]) > float(known.properties["epoch"]):
            last[entry.network] = entry
    found = []
    for entry in last.values():
        graph = zoo.graph(entry)
        layout = graph.token_layout(model.config.token_width)
        places = model.config.positions(layout, 0, len(layout))
        found.append(DenoiserExample(encode(model, graph).values, places, task))
    return found


def _prompts(zoos: list[Zoo]) -> Iterator[tuple[Entry, dict[str, torch.Tensor]]]:
    for zoo in zoos:
        for act in sorted({str(entry.properties["act"]) for entry in zoo.entries}):
            alike = zoo.where(lambda entry, act=act: entry.properties["act"] == act)  # type: ignore[misc]
            for entry in alike.best("test_accuracy", PROMPTS_PER_ACTIVATION[zoo.name]).entries:
                named = Entry(
                    network=f"{zoo.name}-{entry.network.removeprefix(zoo.name + '-')}",
                    checkpoint=entry.checkpoint,
                    factory=entry.factory,
                    properties=entry.properties,
                )
                yield named, zoo.state_dict(entry)


def _line(event: Progress) -> None:
    if event.done % 25 == 0 or event.done == event.total:
        clock = time.strftime("%H:%M:%S")
        print(
            clock, event.job, f"{event.done}/{event.total}", event.note, file=sys.stderr, flush=True
        )


if __name__ == "__main__":
    main()
