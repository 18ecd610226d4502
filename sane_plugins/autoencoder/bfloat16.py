"""Encoder of a SANE in bfloat16, for processors that multiply bfloat16 matrices natively.

It computes what `SANE.encode` computes, with three exact rewritings that keep matrices the only large work.
A layer norm of x is x_c / hypot(|x_c|, sqrt(d eps)) * sqrt(d) * w, where x_c is x without its mean: the mean
is taken out of every matrix that writes x, and sqrt(d) * w goes into the matrix that reads it. What a token
is before the first attention is computed once, not once per window that sees it. The last block is computed
for the tokens that a window owns; of its halo, keys and values suffice.
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
_NARROW = torch.bfloat16


def precision_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the type to encode in; `auto` is bfloat16 on processors that have it, else float32."""
    if precision == "auto":
        return _NARROW if device.type == "cpu" and _is_native() else torch.float32
    return {"float32": torch.float32, "bfloat16": _NARROW}[precision]


def supports_bfloat16(model: SANE) -> bool:
    """Tell whether `BFloat16Encoder` computes this model: it knows no part of the published form."""
    config = model.config
    return config.scale == "tensor" and not config.tables and config.is_normed


def _is_native() -> bool:
    """Tell whether the processor has bfloat16 instructions (AVX-512 BF16, AMX); torch says so privately."""
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


@dataclass(frozen=True)
class _Block:
    """The matrices of one transformer block, transposed, with norms and centring folded in."""

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
        centre = torch.eye(self._width, device=device) - 1 / self._width
        self._tokens_in = _packed(centre @ _float(model.tokens_in.weight))
        self._positions_in = _packed(centre @ _float(model.places_in.get_parameter("weight")))
        self._blocks = [_block(layer, centre) for layer in model.encoder.layers]
        self._latents_out = _packed(_float(model.latents_out.weight) * _gain(last))
        self._floor = torch.tensor((self._width * last.eps) ** 0.5, dtype=_NARROW, device=device)
        self._buffers = threading.local()

    def __call__(
        self,
        values: torch.Tensor,
        side: torch.Tensor,
        positions: torch.Tensor,
        visible: torch.Tensor,
        owned: torch.Tensor,
    ) -> torch.Tensor:
        """Encode what K windows own.

        values (U, D), side (U, 4) and positions (U, P) of consecutive tokens; `visible` (K, S) says which of
        them a window sees, `owned` (K, W) which tokens of its own span it owns. Returns (K, W, L).
        """
        x: torch.Tensor = torch.cat([values, side], -1).to(_NARROW) @ self._tokens_in
        x = x.addmm_(positions.to(_NARROW), self._positions_in).index_select(0, visible.flatten())
        windows, span = visible.shape
        rows = (owned + torch.arange(windows, device=x.device)[:, None] * span).flatten()
        for block in self._blocks[:-1]:
            qkv = torch.mm(self._norm(x), block.qkv, out=self._buffer(x, 3))
            q, k, v = self._split(qkv, windows)
            self._mix(x, functional.scaled_dot_product_attention(q, k, v), block)
        y, last = self._norm(x), self._blocks[-1]
        (q,) = self._split(y.index_select(0, rows) @ last.qkv[:, : self._width], windows)
        k, v = self._split(y @ last.qkv[:, self._width :], windows)
        x = x.index_select(0, rows)
        self._mix(x, functional.scaled_dot_product_attention(q, k, v), last)
        latents: torch.Tensor = (self._norm(x) @ self._latents_out).float().view(*owned.shape, -1)
        return functional.layer_norm(latents, latents.shape[-1:])

    def _mix(self, x: torch.Tensor, attended: torch.Tensor, block: _Block) -> None:
        """Add to x (M, d) attention (K, heads, S, d / heads), and then the feed-forward part."""
        x.addmm_(attended.transpose(1, 2).reshape(x.shape), block.out)
        inner = torch.mm(self._norm(x), block.up, out=self._buffer(x, 4))
        torch.ops.aten.gelu_(inner)
        x.addmm_(inner, block.down)

    def _norm(self, x: torch.Tensor) -> torch.Tensor:
        """Return x over its length, which stays above that of the layer norm's epsilon."""
        length = torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self._floor)
        return torch.div(x, length, out=self._buffer(x, 1))

    def _split(self, x: torch.Tensor, windows: int) -> tuple[torch.Tensor, ...]:
        """Split (K * S, n * d) into n of (K, heads, S, d / heads)."""
        shape = (windows, -1, x.shape[1] // self._width, self._heads, self._width // self._heads)
        return x.reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)

    def _buffer(self, x: torch.Tensor, times: int) -> torch.Tensor:
        """Return a buffer (M, times * d), kept per thread: fresh memory costs more than many a step."""
        buffers: dict[int, torch.Tensor] = self._buffers.__dict__.setdefault("by_width", {})
        size = len(x) * times * self._width
        if times not in buffers or buffers[times].numel() < size:
            with torch.inference_mode(False):  # memory made in that mode may be written in no other
                buffers[times] = torch.empty(size, dtype=_NARROW, device=x.device)
        buffer: torch.Tensor = buffers[times][:size]
        return buffer.view(len(x), -1)


_encoders: WeakKeyDictionary[SANE, tuple[object, BFloat16Encoder]] = WeakKeyDictionary()


def bfloat16_encoder(model: SANE) -> BFloat16Encoder:
    """Return the model's encoder in bfloat16; made again where its weights changed."""
    state = tuple((p.data_ptr(), p.is_inference() or p._version) for p in model.parameters())
    cached = _encoders.get(model)
    if cached is None or cached[0] != state:
        cached = _encoders[model] = (state, BFloat16Encoder(model))
    return cached[1]


def _block(layer: nn.Module, centre: torch.Tensor) -> _Block:
    assert isinstance(layer, nn.TransformerEncoderLayer)
    attention = layer.self_attn
    return _Block(
        qkv=_packed(_float(attention.in_proj_weight) * _gain(layer.norm1)),
        out=_packed(centre @ _float(attention.out_proj.weight)),
        up=_packed(_float(layer.linear1.weight) * _gain(layer.norm2)),
        down=_packed(centre @ _float(layer.linear2.weight)),
    )


def _gain(norm: nn.LayerNorm) -> torch.Tensor:
    root: float = len(norm.weight) ** 0.5
    return _float(norm.weight) * root


def _float(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().float()


def _packed(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.t().to(_NARROW).contiguous()
