"""Does a pruned network take a second task, and what are generated weights worth in the freed entries?

    python benchmarks/pruned.py --data ../shared/data [--seeds 5] [--share 0.8]

The best relu networks of mnist-cnn lose 80 % of all weights outside the classifier, the smallest first, and are trained
on for an epoch with their zeros held. The freed entries then learn Fashion-MNIST (10,000 images; Adam, 1e-3, batch 64)
while survivors stay frozen, from zeros, from the default initialisation, and from what `sane-init` generates
(prompts: mnist-cnn and animals-cnn). The first task's outputs on 1,000 MNIST test images are compared bit for bit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import zoodata
from initialize import fitted
from torch import nn
from torch.nn.utils import prune

from sane_plugins.architectures import small_cnn
from sane_plugins.autoencoder import embedded_sane
from sane_plugins.generation import choose_prompts
from sane_plugins.initialize import (
    InitializeOptions,
    PrunedNetwork,
    TrainOptions,
    first_task,
    initialize,
    train_epochs,
)
from sane_plugins.initialize.candidates import CandidateBuilder
from sane_plugins.initialize.kinds import CandidateSpec, Kind
from sane_plugins.initialize.problem import prepare
from sane_plugins.tasks import Task, accuracy, load_task

EPOCHS = (0, 1, 2, 5)
IMAGES = 1000


def main() -> None:
    """Measure all seeds; exit 1 where an output of the first task changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--zoos", type=Path, default=zoodata.RUNS / "zoos")
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    zoos = zoodata.zoos(arguments.data, arguments.zoos, ["mnist-cnn", "animals-cnn"])
    prompts = [graph for zoo in zoos for graph in choose_prompts(small_cnn(), zoo, 12).graphs]
    mnist = load_task(arguments.data / "datasets" / "mnist.npz", 28)
    second = load_task(arguments.data / "datasets" / f"{arguments.dataset}.npz", 28)
    sane, runs = embedded_sane(), []
    for seed in range(arguments.seeds):
        rng = torch.Generator().manual_seed(seed)
        first, before = _pruned(prompts[seed], mnist.subset(10_000, rng), arguments.share)
        task = second.subset(10_000, rng)
        run = {"first": accuracy(first, mnist.x_test, mnist.y_test), "unpruned": before}
        run |= _second(first, task, mnist.x_test[:IMAGES], prompts, sane, seed)
        runs.append(run)
        print(f"seed {seed}: {run}", file=sys.stderr, flush=True)
    text = _table(runs, arguments.share)
    (zoodata.RESULTS / "pruned.json").write_text(json.dumps(runs) + "\n")
    (zoodata.RESULTS / "pruned.md").write_text(text)
    print(text)
    sys.exit(not all(run["same_bits"] for run in runs))


def _pruned(prompt: Any, mnist: Task, share: float) -> tuple[nn.Module, float]:
    """Return the pruned first network, and its accuracy before pruning."""
    module = small_cnn()
    module.load_state_dict({key: prompt.tensors[key] for key in module.state_dict()})
    before = accuracy(module, mnist.x_test, mnist.y_test)
    parts = [(m, "weight") for m in module if isinstance(m, nn.Conv2d | nn.Linear)][:-1]
    prune.global_unstructured(parts, prune.L1Unstructured, amount=share)
    train_epochs(module, mnist, 1, TrainOptions(), torch.Generator().manual_seed(0))
    for part, name in parts:
        prune.remove(part, name)
    return module.eval(), before


def _second(
    first: nn.Module, task: Task, images: torch.Tensor, prompts: Any, sane: Any, seed: int
) -> dict[str, Any]:
    options = InitializeOptions(seed=seed, pruned=True)
    problem = prepare(first, task, prompts, sane, options)
    builder, found = CandidateBuilder(problem), problem.pruned
    assert found is not None
    answers, same, curves = first(images), True, {}
    made: Mapping[str, Callable[[], nn.Module]] = {
        "zeros (survivors alone), classifier fitted": lambda: fitted(deepcopy(first), task),
        "default": lambda: builder.build(CandidateSpec(Kind.DEFAULT)).module,
        "default, classifier fitted": lambda: (
            builder.build(CandidateSpec(Kind.DEFAULT_FITTED)).module
        ),
        "sane-init": lambda: initialize(first, task, prompts, sane, options).module,
    }
    for name, make in made.items():
        module = make()
        curve = [accuracy(module, task.x_test, task.y_test)]
        rng = torch.Generator().manual_seed(seed)
        curve += train_epochs(module, task, max(EPOCHS), TrainOptions(), rng, found)
        curves[name] = [curve[e] for e in EPOCHS]
        same &= torch.equal(_again(first, module, found)(images), answers)
    return {"curves": curves, "same_bits": same}


def _again(first: nn.Module, second: nn.Module, pruned: PrunedNetwork) -> nn.Module:
    module = deepcopy(first)
    state = {k: v.contiguous() for k, v in second.state_dict().items()}
    module.load_state_dict(first_task(state, pruned.first_task_tensors()))
    return module.eval()


def _table(runs: list[dict[str, Any]], share: float) -> str:
    kept = statistics.mean(run["first"] for run in runs)
    before = statistics.mean(run["unpruned"] for run in runs)
    lines = [
        f"First task: {before:.3f} before and {kept:.3f} after pruning by {share:.0%} and an epoch of training.",
        "",
        f"| second task ({len(runs)} seeds) | {' | '.join(f'epoch {e}' for e in EPOCHS)} |",
        "|---" * 5 + "|",
    ]
    for name in runs[0]["curves"]:
        columns = zip(*(run["curves"][name] for run in runs), strict=True)
        cells = [
            f"{statistics.mean(c):.3f} ± {statistics.stdev(c) if len(c) > 1 else 0:.3f}"
            for c in columns
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    same = all(run["same_bits"] for run in runs)
    verdict = f"- {'met' if same else 'MISSED'}: the first task's outputs are unchanged, bit for bit, after every training"
    return "\n".join([*lines, "", verdict, ""])


if __name__ == "__main__":
    main()
