"""Make what ships in the wheel: the SANE, its prompt networks, its property heads and its sampler.

    python tools/release/embedded.py --data ../shared/data [--zoos runs/zoos] [--forms runs/real_forms2]

The SANE is what `real_forms.py sane` pretrained (README.md beside this file says how); it has not seen the
evaluation pool of any zoo, from which the benchmarks draw their test networks. Prompts, heads and the denoiser of the
sampler come from the published zoos and those of `benchmarks/zoos.py`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.append(
    str(Path(__file__).parents[2] / "benchmarks")
)  # zoos and splits are those of the figures
import zoodata
from zoodata import outside_pool, task_of

from sane_plugins.autoencoder import SANE, encode, fingerprint, load_sane
from sane_plugins.generation import DenoiserConfig, DenoiserExample, fit_denoiser, save_denoiser
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
    parser.add_argument(
        "--forms", type=Path, default=RUNS / "real_forms2", help="the SANE's folder"
    )
    parser.add_argument("--stage", choices=STAGES, action="append")
    arguments = parser.parse_args()
    stages = arguments.stage or STAGES
    zoos = zoodata.zoos(arguments.data, arguments.zoos)
    if "sane" in stages:
        make_sane(arguments.forms)
    if "prompts" in stages:
        make_prompts([zoo for zoo in zoos if zoo.name in PROMPTS_PER_ACTIVATION])
    if "heads" in stages:
        make_heads(zoos)
    if "sampler" in stages:
        make_sampler(zoos, arguments.data)


def make_sane(forms: Path) -> None:
    """Ship the SANE of real forms, as float16."""
    shutil.copyfile(forms / "sane-half.safetensors", OUT / "sane.safetensors")


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
