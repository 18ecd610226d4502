"""SANE encoder in bfloat16, for CPUs with native bfloat16 matrix multiplication.

It is equivalent to `SANE.encode`, with three exact rewritings that leave matrix products as the main cost.
A layer norm of x is x_c / hypot(|x_c|, sqrt(d eps)) * sqrt(d) * w, where x_c is x without its mean: the mean
is removed from every matrix that writes x, and sqrt(d) * w is folded into the matrix that reads it. Token
embeddings before the first attention are computed once, not once per window that sees them. The last block is
computed only for tokens that a window owns; its halo needs only keys and values.
The method: docs/explanation/sane.md, section 5.7.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional

from sane_plugins.autoencoder.model import SANE

Precision = Literal["auto", "float32", "bfloat16"]
_BFLOAT16 = torch.bfloat16


def precision_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype to encode in; `auto` is bfloat16 on CPUs that support it, else float32."""
    if precision == "auto":
        return _BFLOAT16 if device.type == "cpu" and _has_native_bfloat16() else torch.float32
    return {"float32": torch.float32, "bfloat16": _BFLOAT16}[precision]


def supports_bfloat16(model: SANE) -> bool:
    """Return whether `BFloat16Encoder` supports this model; the published variants are not supported."""
    config = model.config
    return config.scale == "tensor" and not config.tables and config.is_normed


def _has_native_bfloat16() -> bool:
    """Return whether the CPU has AVX-512 BF16 or AMX; torch exposes this only privately."""
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


@dataclass(frozen=True)
class _Block:
    """Transposed matrices of one transformer block, with norms and centring folded in."""

    qkv: torch.Tensor
    out: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


class BFloat16Encoder:
    """Encodes batches of halo windows in bfloat16; safe to call from several threads."""

    def __init__(self, model: SANE) -> None:
        config, last = model.config, model.encoder.norm
        assert isinstance(last, nn.LayerNorm)
        self._heads, self._width = config.heads, config.model_width
        device = model.latents_out.weight.device
        centre = torch.eye(self._width, device=device, dtype=torch.float32) - 1 / self._width
        self._tokens_in = _pack(centre @ _float(model.tokens_in.weight))
        self._positions_in = _pack(centre @ _float(model.places_in.get_parameter("weight")))
        self._blocks = [_block(layer, centre) for layer in model.encoder.layers]
        self._latents_out = _pack(_float(model.latents_out.weight) * _folded_gain(last))
        self._epsilon_norm = torch.tensor(
            (self._width * last.eps) ** 0.5, dtype=_BFLOAT16, device=device
        )
        self._buffers = threading.local()

    def __call__(
        self,
        values: torch.Tensor,
        side: torch.Tensor,
        positions: torch.Tensor,
        visible: torch.Tensor,
        owned: torch.Tensor,
    ) -> torch.Tensor:
        """Encode the tokens owned by K windows.

        values (U, D), side (U, 4) and positions (U, P) of consecutive tokens; `visible` (K, S) indexes the
        tokens each window sees, `owned` (K, W) those of its span that it owns. Returns (K, W, L).
        """
        x: torch.Tensor = torch.cat([values, side], -1).to(_BFLOAT16) @ self._tokens_in
        x = x.addmm_(positions.to(_BFLOAT16), self._positions_in).index_select(0, visible.flatten())
        windows, span = visible.shape
        rows = (owned + torch.arange(windows, device=x.device)[:, None] * span).flatten()
        for block in self._blocks[:-1]:
            qkv = torch.mm(self._norm(x), block.qkv, out=self._buffer(x, 3))
            q, k, v = self._split(qkv, windows)
            self._add_residuals(x, functional.scaled_dot_product_attention(q, k, v), block)
        y, last = self._norm(x), self._blocks[-1]
        (q,) = self._split(y.index_select(0, rows) @ last.qkv[:, : self._width], windows)
        k, v = self._split(y @ last.qkv[:, self._width :], windows)
        x = x.index_select(0, rows)
        self._add_residuals(x, functional.scaled_dot_product_attention(q, k, v), last)
        latents: torch.Tensor = (self._norm(x) @ self._latents_out).float().view(*owned.shape, -1)
        return functional.layer_norm(latents, latents.shape[-1:])

    def _add_residuals(self, x: torch.Tensor, attended: torch.Tensor, block: _Block) -> None:
        """Add attention output and then the feed-forward block to x (M, d), in place."""
        x.addmm_(attended.transpose(1, 2).reshape(x.shape), block.out)
        inner = torch.mm(self._norm(x), block.up, out=self._buffer(x, 4))
        torch.ops.aten.gelu_(inner)
        x.addmm_(inner, block.down)

    def _norm(self, x: torch.Tensor) -> torch.Tensor:
        """Return x divided by its norm, with the layer norm's epsilon included."""
        length = torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self._epsilon_norm)
        return torch.div(x, length, out=self._buffer(x, 1))

    def _split(self, x: torch.Tensor, windows: int) -> tuple[torch.Tensor, ...]:
        """Split (K * S, n * d) into n of (K, heads, S, d / heads)."""
        shape = (windows, -1, x.shape[1] // self._width, self._heads, self._width // self._heads)
        return x.reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)

    def _buffer(self, x: torch.Tensor, times: int) -> torch.Tensor:
        """Return a reusable per-thread buffer (M, times * d), as fresh allocations are expensive."""
        buffers: dict[int, torch.Tensor] = self._buffers.__dict__.setdefault("by_width", {})
        size = len(x) * times * self._width
        if times not in buffers or buffers[times].numel() < size:
            with torch.inference_mode(
                False
            ):  # inference tensors cannot be modified outside inference mode
                buffers[times] = torch.empty(size, dtype=_BFLOAT16, device=x.device)
        buffer: torch.Tensor = buffers[times][:size]
        return buffer.view(len(x), -1)


_encoders: WeakKeyDictionary[SANE, tuple[object, BFloat16Encoder]] = WeakKeyDictionary()


def bfloat16_encoder(model: SANE) -> BFloat16Encoder:
    """Return the model's bfloat16 encoder, cached until its weights change."""
    state = tuple((p.data_ptr(), p.is_inference() or p._version) for p in model.parameters())
    cached = _encoders.get(model)
    if cached is None or cached[0] != state:
        cached = _encoders[model] = (state, BFloat16Encoder(model))
    return cached[1]


def _block(layer: nn.Module, centre: torch.Tensor) -> _Block:
    assert isinstance(layer, nn.TransformerEncoderLayer)
    attention = layer.self_attn
    return _Block(
        qkv=_pack(_float(attention.in_proj_weight) * _folded_gain(layer.norm1)),
        out=_pack(centre @ _float(attention.out_proj.weight)),
        up=_pack(_float(layer.linear1.weight) * _folded_gain(layer.norm2)),
        down=_pack(centre @ _float(layer.linear2.weight)),
    )


def _folded_gain(norm: nn.LayerNorm) -> torch.Tensor:
    root: float = len(norm.weight) ** 0.5
    return _float(norm.weight) * root


def _float(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().float()


def _pack(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.t().to(_BFLOAT16).contiguous()
