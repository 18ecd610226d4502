"""Which sampler gives the best candidates?

    python benchmarks/samplers.py --data ../shared/data [--seeds 3]

Small CNN (relu), prompts from mnist-cnn. Each sampler draws 16 networks; classifiers are fitted, the best by held-out images
is brought to the default's scale and trained. Test accuracy before training and after 1 and 2 epochs, 10,000 images.
USPS, animals and grey CIFAR-10 are what options were settled on; Fashion-MNIST is the test.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from functools import partial
from pathlib import Path

import torch
import zoodata
from gate_runs import images_of

from sane_plugins.architectures import small_cnn
from sane_plugins.autoencoder import embedded_sane
from sane_plugins.generation import KDE, Diffusion, Gaussian, Sampler, choose_prompts
from sane_plugins.initialize import InitializeOptions, TrainOptions, train_epochs
from sane_plugins.initialize.candidates import CandidateBuilder
from sane_plugins.initialize.kinds import CandidateSpec, Kind
from sane_plugins.initialize.problem import prepare
from sane_plugins.runtime import random_stream
from sane_plugins.tasks import accuracy

TASKS = ("usps", "animal_mnist", "grey", "fashion_mnist")
COUNT = 16
SAMPLERS: dict[str, Sampler] = {
    "prompts themselves, decoded": KDE(bandwidth=0.0),
    "kde, .05": KDE(bandwidth=0.05),
    "kde, .2": KDE(bandwidth=0.2),
    "gaussian": Gaussian(),
    "diffusion, .3": Diffusion(level=0.3),
    "diffusion, .6": Diffusion(level=0.6),
    "diffusion, .95": Diffusion(level=0.95),
}


def main() -> None:
    """Measure every sampler on every task; write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    zoo = zoodata.zoos(arguments.data, Path(), ["mnist-cnn"])[0]
    prompts, sane = choose_prompts(small_cnn(), zoo, 6).graphs, embedded_sane()
    found: dict[str, dict[str, list[list[float]]]] = {}
    for name in TASKS:
        for seed in range(arguments.seeds):
            task = images_of(name, 28, arguments.data).subset(
                10_000, torch.Generator().manual_seed(seed)
            )
            make = partial(small_cnn, 1, len(task.classes))
            for label, sampler in SAMPLERS.items():
                options = InitializeOptions(seed=seed, sampler=sampler)
                problem = prepare(make, task, prompts, sane, options)
                assert problem.sampler is not None  # it is bound when the prompts are encoded
                rng, builder = random_stream(seed, "round", 0), CandidateBuilder(problem)
                latents = problem.sampler(problem.sane_transfer.prompts, COUNT, rng).unsqueeze(1)
                held_out = problem.task.x_test, problem.task.y_test
                before = [
                    accuracy(builder.build(CandidateSpec(Kind.SANE, i), z).module, *held_out)
                    for i, z in enumerate(latents)
                ]
                best = before.index(max(before))
                spec = CandidateSpec(Kind.SANE, best, scale="default")
                module = builder.build(spec, latents[best]).module
                curve = [accuracy(module, task.x_test, task.y_test)]
                rng = torch.Generator().manual_seed(seed)
                curve += train_epochs(module, task, 2, TrainOptions(), rng)
                found.setdefault(name, {}).setdefault(label, []).append(curve)
            print(f"{name} {seed} done", file=sys.stderr, flush=True)
    lines = [f"| sampler ({arguments.seeds} seeds) | {' | '.join(TASKS)} |", "|---" * 5 + "|"]
    for label in SAMPLERS:
        cells = [_cell(found[name][label]) for name in TASKS]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    text = "\n".join([*lines, "", "Accuracy before training, after 1 and after 2 epochs.", ""])
    (zoodata.RESULTS / "samplers.json").write_text(json.dumps(found) + "\n")
    (zoodata.RESULTS / "samplers.md").write_text(text)
    print(text)


def _cell(curves: list[list[float]]) -> str:
    return ", ".join(f"{statistics.mean(values):.3f}" for values in zip(*curves, strict=True))


if __name__ == "__main__":
    main()
