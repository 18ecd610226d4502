"""Networks and their relatives: noisy, pruned, tuned, shuffled, rounded, exported, renamed, extended.

Used by `relatives.py`.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from sane_plugins.architectures import mlp, resnet, vit
from sane_plugins.formats import from_state_dict
from sane_plugins.initialize import TrainOptions, train_epochs
from sane_plugins.symmetry import permutation_groups, permute, random_permutations
from sane_plugins.tasks import Task, load_task
from sane_plugins.weights import WeightGraph, copy_module, from_module
from sane_plugins.zoo import import_published

IMAGES, FEW_IMAGES = 800, 200
EPOCHS = 3
FACTORIES: Mapping[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet": (partial(resnet, channels_in=1, depth=8, width=8), 10),
    "vit": (vit, 3),
    "mlp": (partial(mlp, channels_in=1), 3),
}
"""What is trained here, and how many of each: one recipe, other seeds and other images."""


@dataclass(frozen=True)
class Member:
    """A network that runs, with images of its own task and of another."""

    name: str
    group: str
    module: nn.Module
    task: Task
    other: Task


def members(data: Path) -> Iterator[Member]:
    """Yield the networks, those of one group after each other."""
    rng = torch.Generator().manual_seed(0)
    tasks = {
        name: load_task(data / "datasets" / f"{name}.npz", size)
        for name, size in (
            ("mnist", 28),
            ("fashion_mnist", 28),
            ("cifar10", None),
            ("photos10b", None),
        )
    }
    tasks = {
        name: replace(x, x_test=x.x_test[:100], y_test=x.y_test[:100]) for name, x in tasks.items()
    }
    few = {name: task.subset(IMAGES, rng) for name, task in tasks.items()}
    others = {"mnist": "fashion_mnist", "cifar10": "photos10b"}
    for task, another in others.items():
        zoo = import_published(data / "zoos" / f"{task}-cnn.json")
        last = {e.network: e for e in zoo.entries if e.properties["finite"]}
        ranked = sorted(last.values(), key=lambda e: -float(e.properties["test_accuracy"]))
        for entry in ranked[: len(ranked) // 2 : len(ranked) // 24][:12]:
            name = f"{zoo.name} {entry.network}"
            yield Member(name, zoo.name, zoo.module(entry), few[task], few[another])
    for name, (build, count) in FACTORIES.items():
        for i in range(count):
            torch.manual_seed(100 + i)
            module = build()
            _train(module, tasks["mnist"].subset(IMAGES, rng), EPOCHS, 3e-3, 100 + i)
            own, other = (few[x].subset(FEW_IMAGES, rng) for x in ("mnist", "fashion_mnist"))
            yield Member(f"{name} {i}", name, module.eval(), own, other)
    for depth, stem in ((20, "12fca82f"), (32, "d509ac18")):
        path = data / "checkpoints/akamaster_pytorch_resnet_cifar10" / f"resnet{depth}-{stem}.th"
        stored = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
        module = resnet(depth=depth)
        module.load_state_dict({k.removeprefix("module."): x for k, x in stored.items()})
        own, other = (few[name].subset(FEW_IMAGES, rng) for name in ("cifar10", "photos10b"))
        yield Member(f"resnet{depth}", "published", module.eval(), own, other)


def relatives(member: Member, folder: Path) -> dict[str, WeightGraph]:
    """Return the relatives of a network by kind."""
    graph = from_module(member.module)
    tuned = from_module(_tuned(member.module, member.task, EPOCHS, 1e-3))
    return {
        "noise 1 %": noisy(graph, 0.01),
        "noise 10 %": noisy(graph, 0.1),
        "pruned 30 %": pruned(graph, 0.3),
        "pruned 60 %": pruned(graph, 0.6),
        "tuned, same task": tuned,
        "tuned, other task": from_module(_tuned(member.module, member.other, EPOCHS, 1e-3)),
        "tuned heavily": from_module(_tuned(member.module, member.other, 4 * EPOCHS, 3e-3)),
        "permuted": shuffled(graph, 1),
        "permuted and tuned": shuffled(tuned, 2),
        "fp16": graph.replace({p.key: x.half().float() for p, x in graph.items()}),
        "int8": int8(graph),
        "ONNX, folded norms": exported(member.module, member.task, folder / "x.onnx"),
        "renamed": renamed(graph),
        "layer in front": from_module(fronted(member.module, member.task)),
    }


def noisy(graph: WeightGraph, share: float) -> WeightGraph:
    """Return a copy with noise, as a part of each tensor's deviation."""
    rng = torch.Generator().manual_seed(3)
    return graph.replace(
        {
            p.key: x + share * x.std(correction=0) * torch.randn(x.shape, generator=rng)
            for p, x in graph.items()
            if p.role != "running_var"
        }
    )


def pruned(graph: WeightGraph, share: float) -> WeightGraph:
    """Return a copy without the smallest values of each matrix."""
    kept = {}
    for param, x in graph.items():
        if x.ndim > 1:
            limit = x.abs().flatten().kthvalue(max(int(share * x.numel()), 1)).values
            kept[param.key] = x * (x.abs() > limit)
    return graph.replace(kept)


def shuffled(graph: WeightGraph, seed: int) -> WeightGraph:
    """Return a copy with its channels in random order."""
    known = permutation_groups(graph)
    rng = torch.Generator().manual_seed(seed)
    return permute(graph, random_permutations(known, rng), known)


def int8(graph: WeightGraph) -> WeightGraph:
    """Return a copy whose matrices are rounded to 255 levels, one step for a tensor."""
    rounded = {}
    for param, x in graph.items():
        if x.ndim > 1 and float(x.abs().max()):
            step = x.abs().max() / 127
            rounded[param.key] = (x / step).round() * step
    return graph.replace(rounded)


def exported(module: nn.Module, task: Task, path: Path) -> WeightGraph:
    """Return a network as it comes back from ONNX, its norms folded where the exporter can."""
    import sane_onnx

    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = task.x_train[:1]
        torch.onnx.export(
            copy_module(module).eval(),
            (example,),
            str(path),
            dynamo=False,
            do_constant_folding=True,
        )
    graph = sane_onnx.sane_open(path)
    assert graph is not None
    return graph


def renamed(graph: WeightGraph) -> WeightGraph:
    """Return the tensors under other names, the last layer first, and without topology."""
    names = {name: f"part{i}" for i, name in enumerate(reversed([x.name for x in graph.layers]))}
    tensors = {}
    for layer in reversed(graph.layers):
        for param in layer.params:
            end = param.key.rpartition(".")[2]
            tensors[f"{names[layer.name]}.{end}"] = graph.tensors[param.key]
    return from_state_dict(tensors, "renamed")


def fronted(module: nn.Module, task: Task) -> nn.Module:
    """Return a network with one more convolution in front of it."""
    channels = task.x_train.shape[1]
    torch.manual_seed(4)
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), copy_module(module)).eval()


def _tuned(module: nn.Module, task: Task, epochs: int, rate: float) -> nn.Module:
    copy = copy_module(module)
    _train(copy, task, epochs, rate, 5)
    return copy.eval()


def _train(module: nn.Module, task: Task, epochs: int, rate: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    train_epochs(module, task, epochs, TrainOptions(lr=rate), rng)
