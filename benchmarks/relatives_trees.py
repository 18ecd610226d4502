"""Trees of fine-tuned networks, three generations deep. Used by `relatives.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from sane_plugins.architectures import mlp, small_cnn, vit
from sane_plugins.initialize import TrainOptions, train_epochs
from sane_plugins.tasks import Task, load_task
from sane_plugins.weights import WeightGraph, copy_module, from_module

TASKS = ("mnist", "fashion_mnist", "usps", "animal_mnist")
IMAGES, EPOCHS = 600, 5
BRANCHES = (4, 2, 2)
"""Children of the root, of each child, and of each grandchild: 4 + 8 + 16 networks below a root."""
RECIPES = (
    TrainOptions(lr=1e-3),
    TrainOptions(lr=3e-4, weight_decay=1e-2),
    TrainOptions(lr=1e-2, optimizer="sgd"),
    TrainOptions(lr=1e-3, weight_decay=1e-3),
)
"""Each fine-tuning takes one of these, and one of the tasks, by chance."""


@dataclass(frozen=True)
class Node:
    """A network of a tree and the number of the one that it was tuned from (-1: the root)."""

    graph: WeightGraph
    parent: int


def trees(data: Path, seed: int) -> Iterator[tuple[str, list[Node]]]:
    """Yield one tree of each architecture; the numbers of parents are smaller than those of children."""
    tasks = {}
    for name in TASKS:
        task = load_task(data / "datasets" / f"{name}.npz", 28)
        tasks[name] = replace(task, x_test=task.x_test[:10], y_test=task.y_test[:10])
    builders: dict[str, Callable[[], nn.Module]] = {
        "small_cnn": lambda: small_cnn(channels_in=1),
        "mlp": lambda: mlp(channels_in=1, width=24),
        "vit": vit,
    }
    for i, (name, build) in enumerate(builders.items()):
        rng = torch.Generator().manual_seed(1000 * seed + i)
        torch.manual_seed(1000 * seed + i)
        yield name, _tree(build(), tasks, rng)


def _tree(root: nn.Module, tasks: Mapping[str, Task], rng: torch.Generator) -> list[Node]:
    train_epochs(root, tasks["mnist"].subset(4 * IMAGES, rng), 4, TrainOptions(lr=2e-3), rng)
    modules, nodes, generation = [root], [Node(_copied(root), -1)], [0]
    for branches in BRANCHES:
        born = []
        for parent in generation:
            for _ in range(branches):
                child = copy_module(modules[parent])
                name = TASKS[int(torch.randint(len(TASKS), (), generator=rng))]
                recipe = RECIPES[int(torch.randint(len(RECIPES), (), generator=rng))]
                train_epochs(child, tasks[name].subset(IMAGES, rng), EPOCHS, recipe, rng)
                born.append(len(nodes))
                modules.append(child)
                nodes.append(Node(_copied(child), parent))
        generation = born
    return nodes


def _copied(module: nn.Module) -> WeightGraph:
    graph = from_module(copy_module(module).eval())
    return replace(graph, tensors={key: x.detach().clone() for key, x in graph.tensors.items()})
