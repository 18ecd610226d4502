"""Exports that fold nothing have the layers of the module: kinds, roles, axes, and the same connections."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from onnxfiles import export, opened
from torch import nn

from sane_plugins.architectures import resnet
from sane_plugins.symmetry import permutation_groups
from sane_plugins.weights import WeightGraph, from_module

pytest.importorskip("onnx")

Example = tuple[nn.Module, torch.Tensor]
IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
WORDS = torch.randint(0, 20, (2, 7), generator=torch.Generator().manual_seed(0))


class _Gates(nn.Module):
    def __init__(self, kind: type[nn.Module], is_both: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.body = kind(6, 5, batch_first=True, bidirectional=is_both)
        self.norm = nn.LayerNorm(10 if is_both else 5)
        self.head = nn.Linear(10 if is_both else 5, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.body(self.embed(words))[0][:, -1]))


class _Attention(nn.Module):
    """Heads are cut and joined by sizes that the module asks its input for."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(20, 12), nn.LayerNorm(12)
        self.query, self.key, self.value, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(12, 24), nn.Linear(24, 12), nn.Linear(12, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.embed(words))
        batch, length, width = hidden.shape
        query, key, value = (
            f(hidden).view(batch, length, 3, width // 3).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(2, 3) / (width // 3) ** 0.5
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, width)
        hidden = hidden + self.out(mixed)
        return self.head((hidden + self.down(torch.relu(self.up(hidden))))[:, 0])


class _Gated(nn.Module):
    """Convolutions without a bias, depthwise and transposed ones, and a gate of means."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.deep, self.last = nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8)
        self.narrow, self.wide = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.turned, self.head = nn.ConvTranspose2d(8, 6, 2, bias=False), nn.Linear(6, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = self.last(self.deep(nn.functional.hardswish(self.norm(self.stem(image)))))
        gate = self.wide(torch.relu(self.narrow(hidden.mean((2, 3), keepdim=True))))
        return self.head(torch.relu(self.turned(hidden * gate.sigmoid())).mean((2, 3)))


NETWORKS: dict[str, Callable[[], Example]] = {
    "lstm": lambda: (_Gates(nn.LSTM, False), WORDS),
    "lstm of two directions": lambda: (_Gates(nn.LSTM, True), WORDS),
    "gru": lambda: (_Gates(nn.GRU, False), WORDS),
    "attention": lambda: (_Attention(), WORDS),
    "gated": lambda: (_Gated(), IMAGE),
    "resnet": lambda: (resnet(depth=8, width=4), IMAGE),
}


def _made(name: str) -> Example:
    """Return a network whose tensors all differ: exporters merge equal ones."""
    torch.manual_seed(0)
    module, example = NETWORKS[name]()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return module.eval(), example


def _layers(graph: WeightGraph) -> Counter:
    return Counter(
        (layer.kind, layer.groups, tuple((p.role, p.shape, p.axis) for p in layer.params))
        for layer in graph.layers
        if layer.params
    )


@pytest.mark.parametrize(
    "dynamo", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["script", "dynamo"]
)
@pytest.mark.parametrize("name", NETWORKS)
def test_an_unfolded_export_has_the_layers_of_the_module(
    name: str, dynamo: bool, tmp_path: Path
) -> None:
    module, example = _made(name)
    options = (
        {"optimize": False, "external_data": False}
        if dynamo
        else {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
    )
    found = opened(export(module, example, tmp_path / "m.onnx", dynamo, **options))
    expected = from_module(module)
    assert _layers(found) == _layers(expected)
    assert (found.size, found.coverage) == (expected.size, 1)
    sizes = [
        sorted(group.size for group in permutation_groups(graph)) for graph in (found, expected)
    ]
    assert sizes[0] == sizes[1]
