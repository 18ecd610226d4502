"""Small networks for tests of grafting, written by hand as users write theirs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Widths = tuple[int, int, int]


class PlainNet(nn.Module):
    """Convolutions with batch norm or without, functional activations, a flattened head of two layers."""

    def __init__(self, widths: Widths = (6, 10, 12), classes: int = 5) -> None:
        super().__init__()
        a, b, c = widths
        self.first = nn.Conv2d(3, a, 5, padding=2)
        self.norm = nn.BatchNorm2d(a)
        self.second = nn.Conv2d(a, b, 3, stride=2, padding=1)
        self.hidden = nn.Linear(b * 16, c)
        self.last = nn.Linear(c, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, classes)."""
        x = torch.relu(self.norm(self.first(x)))
        x = nn.functional.adaptive_avg_pool2d(self.second(x).relu(), 4)
        return self.last(torch.relu(self.hidden(torch.flatten(x, 1))))


class ResidualNet(nn.Module):
    """Residual blocks with a projected shortcut, written as one forward without classes for blocks."""

    def __init__(self, widths: Widths = (6, 8, 12), classes: int = 5) -> None:
        super().__init__()
        a, b, c = widths
        self.stem = nn.Sequential(nn.Conv2d(3, a, 3, padding=1, bias=False), nn.BatchNorm2d(a))
        self.up = nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b))
        self.down = nn.Sequential(nn.Conv2d(b, a, 3, padding=1, bias=False), nn.BatchNorm2d(a))
        self.wide = nn.Sequential(
            nn.Conv2d(a, c, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(c)
        )
        self.mix = nn.Sequential(nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c))
        self.cut = nn.Sequential(nn.Conv2d(a, c, 1, stride=2, bias=False), nn.BatchNorm2d(c))
        self.last = nn.Linear(c, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, classes)."""
        x = self.stem(x).relu()
        x = (x + self.down(self.up(x).relu())).relu()
        x = (self.cut(x) + self.mix(self.wide(x).relu())).relu()
        return self.last(x.mean((2, 3)))


class _Gated(nn.Module):
    def __init__(self, width: int, hidden: int, *, has_gate: bool) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU6())
        self.filters = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden), nn.BatchNorm2d(hidden)
        )
        self.gate = (
            nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Conv2d(hidden, 4, 1),
                nn.ReLU(),
                nn.Conv2d(4, hidden, 1),
                nn.Sigmoid(),
            )
            if has_gate
            else None
        )
        self.project = nn.Sequential(nn.Conv2d(hidden, width, 1), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.filters(self.expand(x))
        if self.gate is not None:
            y = y * self.gate(y)
        return x + self.project(y)


class MobileNet(nn.Module):
    """Inverted residual blocks, with squeeze-excite gates or without."""

    def __init__(
        self, widths: Widths = (6, 12, 20), classes: int = 5, *, has_gate: bool = False
    ) -> None:
        super().__init__()
        a, b, c = widths
        self.stem = nn.Sequential(nn.Conv2d(3, a, 3, stride=2, padding=1), nn.BatchNorm2d(a))
        self.blocks = nn.Sequential(
            _Gated(a, b, has_gate=has_gate), _Gated(a, b, has_gate=has_gate)
        )
        self.head = nn.Sequential(nn.Conv2d(a, c, 1), nn.BatchNorm2d(c), nn.ReLU())
        self.last = nn.Linear(c, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, classes)."""
        return self.last(self.head(self.blocks(self.stem(x))).mean((2, 3)))


class DenseNet(nn.Module):
    """Concatenated branches behind norms that stand before their convolutions."""

    def __init__(self, widths: Widths = (6, 4, 8), classes: int = 5) -> None:
        super().__init__()
        a, b, c = widths
        self.stem = nn.Conv2d(3, a, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(a), nn.BatchNorm2d(a + b)])
        self.layers = nn.ModuleList([nn.Conv2d(a, b, 3, padding=1), nn.Conv2d(a + b, b, 1)])
        self.head = nn.Conv2d(a + 2 * b, c, 1)
        self.last = nn.Linear(c, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, classes)."""
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.cat([x, layer(norm(x).relu())], 1)
        return self.last(self.head(x).relu().mean((2, 3)))


class Mlp(nn.Module):
    """Linear layers on the pixels."""

    def __init__(self, widths: Widths = (16, 12, 10), classes: int = 5) -> None:
        super().__init__()
        a, b, c = widths
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(3 * 16 * 16, a),
            nn.BatchNorm1d(a),
            nn.ReLU(),
            nn.Linear(a, b),
            nn.ReLU(),
            nn.Linear(b, c),
            nn.ReLU(),
            nn.Linear(c, classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, classes)."""
        return self.layers(x)


class GainNet(nn.Module):
    """A norm on a way without convolution, a gain and a shift behind a unit, and computed weights."""

    def __init__(self, widths: Widths = (6, 8, 12), classes: int = 5) -> None:
        super().__init__()
        a, b, c = widths
        self.stem = nn.Conv2d(3, a, 3, padding=1)
        self.straight = nn.BatchNorm2d(a)
        self.mix = nn.Conv2d(a, a, 3, padding=1, bias=False)
        self.wide = nn.Conv2d(a, b, 1)
        self.gain = nn.Parameter(torch.ones(1, b, 1, 1))
        self.shift = nn.Parameter(torch.zeros(b))
        self.head = nn.utils.parametrizations.weight_norm(nn.Conv2d(b, c, 1))
        self.last = nn.Linear(c, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, classes)."""
        x = self.stem(x)
        x = (self.straight(x) + self.mix(x)).relu()
        x = self.wide(x).relu() * self.gain + self.shift.view(-1, 1, 1)
        return self.last(self.head(x).relu().mean((2, 3)))


class Opaque(nn.Module):
    """A plain net whose forward depends on values, so that no trace of it can be had."""

    def __init__(self, widths: Widths = (6, 10, 12), classes: int = 5) -> None:
        super().__init__()
        self.net = PlainNet(widths, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, classes)."""
        if float(x.abs().max()) > 1e9:
            return torch.zeros(len(x), 5)
        return self.net(x)


FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "plain": PlainNet,
    "residual": ResidualNet,
    "mobile": MobileNet,
    "dense": DenseNet,
    "mlp": Mlp,
    "gain": GainNet,
}


def trained(module: nn.Module, seed: int = 0) -> nn.Module:
    """Return a module in evaluation mode with other values in every tensor, as training leaves them."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_buffers():
            if value.is_floating_point():
                values = torch.rand(value.shape, generator=rng)
                value.copy_(values + 0.5 if name.endswith("var") else values - 0.5)
        for value in module.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=rng))
    return module.eval()
