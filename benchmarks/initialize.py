"""Does an initialisation sampled near MNIST networks help on Fashion-MNIST?

    python benchmarks/initialize.py --data ../shared/data

Small CNN (relu), prompts from mnist-cnn only: the best relu networks by their MNIST test accuracy. Each
seed draws 10,000 training images; every method then trains on all of them in the same way (Adam, 1e-3,
batch 64). What `sane-init` chooses, it chooses on images held out of these 10,000; test images only measure.
The options are the defaults, which were settled on other tasks (animals, USPS, grey CIFAR-10).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from sane_plugins.architectures import small_cnn
from sane_plugins.autoencoder import SANE, decode, embedded_sane, encode, load_sane
from sane_plugins.generation import KDE, choose_prompts
from sane_plugins.grafting import find_classifier, fit_classifier
from sane_plugins.initialize import InitializeOptions, TrainOptions, initialize, train_epochs
from sane_plugins.runtime import seeded
from sane_plugins.tasks import Task, accuracy, load_task
from sane_plugins.weights import WeightGraph
from sane_plugins.zoo import import_published

EPOCHS = (0, 1, 2, 5)
IMAGES = 10_000
FIT_IMAGES = 2000
OUT = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One seed's task, and the networks and model that all methods start from."""

    task: Task
    prompts: tuple[WeightGraph, ...]
    sane: SANE
    seed: int

    @property
    def prompt(self) -> WeightGraph:
        """Return the prompt of this seed: they take turns."""
        return self.prompts[self.seed % len(self.prompts)]

    def fresh(self, draw: int = 0) -> nn.Sequential:
        """Return a default initialisation."""
        with seeded(torch.Generator().manual_seed(1000 * draw + self.seed)):
            return small_cnn(self.task.channels, len(self.task.classes))


def default(setting: Setting) -> nn.Module:
    return setting.fresh()


def default_fitted(setting: Setting) -> nn.Module:
    return fitted(setting.fresh(), setting.task)


def best_default_fitted(setting: Setting) -> nn.Module:
    """Choose among three as `sane-init` does: by accuracy on held-out images after an epoch."""
    data = setting.task.held_out(0.2, torch.Generator().manual_seed(setting.seed))
    scores = []
    for draw in range(3):
        module = fitted(setting.fresh(draw), data)
        rng = torch.Generator().manual_seed(draw)
        scores += train_epochs(module, data, 1, TrainOptions(), rng)
    return fitted(setting.fresh(scores.index(max(scores))), data)


def prompt_itself(setting: Setting) -> nn.Module:
    return loaded(setting, setting.prompt.tensors)


def prompt_decoded(setting: Setting) -> nn.Module:
    latents = encode(setting.sane, setting.prompt).values
    return loaded(setting, decode(setting.sane, latents, setting.prompt).tensors)


def prompt_decoded_fitted(setting: Setting) -> nn.Module:
    return fitted(prompt_decoded(setting), setting.task)


def kde(setting: Setting) -> nn.Module:
    """Take one unchosen draw, its classifier random: the published method's first step."""
    latents = torch.stack([encode(setting.sane, p).values for p in setting.prompts])
    drawn = KDE()(latents, 1, torch.Generator().manual_seed(setting.seed))[0]
    return loaded(setting, decode(setting.sane, drawn, setting.prompt).tensors)


def sane_candidate(setting: Setting) -> nn.Module:
    """Take the best SANE candidate whatever the defaults do: what the sampled weights are worth."""
    return _initialized(setting, 0)


def sane_init(setting: Setting) -> nn.Module:
    """Take what the command would write, which may be a default initialisation."""
    return _initialized(setting, None)


METHODS: Mapping[str, Callable[[Setting], nn.Module]] = {
    "default": default,
    "prompt itself": prompt_itself,
    "prompt, encoded and decoded": prompt_decoded,
    "KDE, one draw": kde,
    "default, classifier fitted": default_fitted,
    "default, classifier fitted, best of 3": best_default_fitted,
    "prompt, encoded and decoded, classifier fitted": prompt_decoded_fitted,
    "best SANE candidate": sane_candidate,
    "sane-init": sane_init,
}


def main() -> None:
    """Measure every method with every seed; write the table and all numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--task", default="fashion_mnist")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sane", type=Path, help="a model file instead of the shipped one")
    parser.add_argument("--out", type=Path, default=OUT / "initialise.json")
    arguments = parser.parse_args()
    full = load_task(arguments.data / "datasets" / f"{arguments.task}.npz", 28)
    zoo = import_published(arguments.data / "zoos" / "mnist-cnn.json")
    last = zoo.where(lambda entry: entry.checkpoint == "12")
    prompts = choose_prompts(small_cnn(), last).graphs
    sane = load_sane(arguments.sane) if arguments.sane else embedded_sane()
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for seed in range(arguments.seeds):
        task = full.subset(IMAGES, torch.Generator().manual_seed(seed))
        setting = Setting(task=task, prompts=prompts, sane=sane, seed=seed)
        for name, method in METHODS.items():
            rows[name].append(_measured(method, setting))
            print(f"seed {seed}, {name}: {rows[name][-1]}", file=sys.stderr, flush=True)
    result = {
        "task": arguments.task,
        "images": IMAGES,
        "train": "Adam 1e-3, batch 64",
        "prompts": [p.source for p in prompts],
        "runs": rows,
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    table = _table(rows)
    arguments.out.with_suffix(".md").write_text(table)
    print(table)


def _measured(method: Callable[[Setting], nn.Module], setting: Setting) -> dict[str, float]:
    """Return test accuracy by epoch, and the seconds that the initialisation took."""
    start = time.perf_counter()
    module = method(setting)
    seconds = time.perf_counter() - start
    task = setting.task
    curve = [accuracy(module, task.x_test, task.y_test)]
    rng = torch.Generator().manual_seed(setting.seed)
    curve += train_epochs(module, task, max(EPOCHS), TrainOptions(), rng)
    return {**{str(e): curve[e] for e in EPOCHS}, "seconds": round(seconds, 2)}


def _table(rows: Mapping[str, list[dict[str, float]]]) -> str:
    """Return a markdown table of means, with the deviation over seeds."""
    seeds = len(next(iter(rows.values())))
    lines = [
        f"| initialisation ({seeds} seeds) | {' | '.join(f'epoch {e}' for e in EPOCHS)} | seconds |",
        "|---" * (len(EPOCHS) + 2) + "|",
    ]
    for name, runs in rows.items():
        columns = [[run[str(e)] for run in runs] for e in EPOCHS]
        cells = [f"{statistics.mean(c):.3f} ± {_spread(c):.3f}" for c in columns]
        seconds = statistics.mean(run["seconds"] for run in runs)
        lines.append(f"| {name} | {' | '.join(cells)} | {seconds:.1f} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def loaded(setting: Setting, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return the network of these weights, its classifier left at its default."""
    module = setting.fresh()
    classifier = {"14.weight", "14.bias"}
    module.load_state_dict({k: v for k, v in tensors.items() if k not in classifier}, strict=False)
    return module


def _initialized(setting: Setting, defaults: int | None) -> nn.Module:
    make = partial(small_cnn, setting.task.channels, len(setting.task.classes))
    options = InitializeOptions(seed=setting.seed, defaults=defaults)
    found = initialize(make, setting.task, setting.prompts, setting.sane, options)
    print(f"  chosen: {found.rows[0].name}", file=sys.stderr)
    return found.module


def fitted(module: nn.Module, task: Task) -> nn.Module:
    """Return the module with its classifier fitted in closed form on the first training images."""
    layer = find_classifier(module, task.x_train[:2])
    assert layer is not None
    fit_classifier(module, layer, task.x_train[:FIT_IMAGES], task.y_train[:FIT_IMAGES])
    return module


if __name__ == "__main__":
    main()
