"""Small transformers written by hand, for tests: attention that no library names, fused and split."""

from __future__ import annotations

import torch
from torch import nn


class HandViT(nn.Module):
    """Linear patches, split projections, scores by hand, mean over tokens; pre-norm, or post-norm."""

    def __init__(
        self, width: int = 24, heads: int = 4, depth: int = 2, hidden: int = 40, post: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.post = heads, post
        self.embed = nn.Linear(8 * 8 * 3, width)
        self.places = nn.Parameter(0.2 * torch.randn(1, width, 4, 4))
        self.blocks = nn.ModuleList(_HandBlock(width, hidden) for _ in range(depth))
        self.last = nn.LayerNorm(width) if not post else nn.Identity()
        self.classes = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, 5) of images (N, 3, 32, 32)."""
        x = x.reshape(len(x), 3, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1).reshape(len(x), 16, -1)
        x = self.embed(x).transpose(1, 2).reshape(len(x), -1, 4, 4) + self.places
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, self.heads, self.post)
        return self.classes(self.last(x.mean(1)))


class _HandBlock(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.a, self.b, self.d = (nn.Linear(width, width) for _ in range(3))
        self.c = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.one, self.two = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, heads: int, post: bool) -> torch.Tensor:
        y = x if post else self.one(x)
        q, k, v = (
            part(y).view(len(x), -1, heads, part.out_features // heads).transpose(1, 2)
            for part in (self.a, self.c, self.b)
        )
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        mixed = torch.einsum("bhij,bhjd->bihd", scores.softmax(-1), v).flatten(2)
        x = x + self.d(mixed)
        x = self.one(x) if post else x
        x = x + self.down(torch.relu(self.up(x if post else self.two(x))))
        return self.two(x) if post else x


class TorchViT(nn.Module):
    """A class token, a position table and torch's own encoder layers."""

    def __init__(
        self,
        width: int = 24,
        heads: int = 3,
        depth: int = 2,
        hidden: int = 40,
        patch: int = 8,
        size: int = 32,
        registers: int = 0,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.first = nn.Parameter(0.2 * torch.randn(1, 1 + registers, width))
        count = (size // patch) ** 2 + 1 + registers
        self.table = nn.Parameter(0.2 * torch.randn(1, count, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, hidden, 0.0, "gelu", batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(width)
        self.encoder = nn.TransformerEncoder(layer, depth, norm, enable_nested_tensor=False)
        self.classes = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, 5) of images (N, 3, size, size)."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.first.expand(len(x), -1, -1), x), 1) + self.table
        return self.classes(self.encoder(x)[:, 0])


def trained(module: nn.Module, seed: int = 0) -> nn.Module:
    """Return a module with weights that training might have left: no zeros, no ones, no two blocks alike."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=rng)
            spread = 0.2 if parameter.dim() == 1 else 1.0 / parameter[0].numel() ** 0.5
            parameter.copy_(spread * noise + (parameter if parameter.dim() == 1 else 0.0))
    return module.eval()


@torch.no_grad()
def features(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return what the classifier reads (N, D)."""
    *_, classifier = (part for part in module.modules() if isinstance(part, nn.Linear))
    found: list[torch.Tensor] = []
    hook = classifier.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    module.eval()(images)
    hook.remove()
    return found[0]
