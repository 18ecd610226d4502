"""The SANE autoencoder (docs/explanation/sane.md, section 3; paper section 3.2).

z = W_c Enc(W_t x + P), x' = W_d Dec(W_e z + P). Positions P are Fourier features, and the scale of each slot
is four more numbers of every token, encoded and decoded with it; the published forms can be configured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import layer_norm, pad

from sane_plugins.arguments import require_field_types, require_ranges
from sane_plugins.autoencoder.positions import (
    POSITION_WIDTH,
    RELATIVE_WIDTH,
    LearnedPositions,
    position_features,
    relative_features,
)
from sane_plugins.errors import SourceError, UsageError
from sane_plugins.weights import SIDE, TokenLayout

_MAX_TABLE = 2**24
_RANGES: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("token_width", "latent_width", "model_width", "heads"), (1, 2**16)),
    "layers": (1, 2**8),
    "projection_width": (1, 2**16),
    "window": (1, 2**14),
    "halo": (0, 2**14),
    "slots": (0, 2**20),
    "span": (0, 2**16),
}


@dataclass(frozen=True, kw_only=True)
class SANEConfig:
    """The shape of a SANE and the window it works in; `heads` divides `model_width`.

    `places` says whether a token's place in the file counts ("absolute") or only what its tensor is and where
    in the tensor and how deep in the network it lies ("relative"); with `fills` the model has learnt to
    decode tokens that it was not shown.
    What follows `fills` is there for the published method, see `pretraining.presets`:
    `scale`, what is divided out of the values: each "tensor"'s own, which is then side information, that of
    the whole "zoo" per slot, or "none"; `slots`, how many slots the zoo's scale is for, set by pretraining;
    `tables`, the tokens, slots and channels that learned position tables hold, none where they are computed;
    `projection`, whether the contrastive head reads the mean latent or the whole window;
    `is_normed`, whether layer norms follow both stacks and the latents;
    `span`, the tokens of a training window, 0 for a window with its halo.
    """

    token_width: int = 128
    latent_width: int = 96
    model_width: int = 192
    heads: int = 3
    layers: int = 4
    projection_width: int = 30
    window: int = 48
    halo: int = 16
    places: Literal["absolute", "relative"] = "absolute"
    fills: bool = False
    scale: Literal["tensor", "zoo", "none"] = "tensor"
    slots: int = 0
    tables: Sequence[int] = ()
    projection: Literal["mean", "window"] = "mean"
    is_normed: bool = True
    span: int = 0

    def __post_init__(self) -> None:
        require_field_types(self)
        require_ranges(self, _RANGES)
        object.__setattr__(self, "tables", tuple(self.tables))
        tables = (len(self.tables) in (0, 3)) and all(
            type(n) is int and 0 < n <= _MAX_TABLE for n in self.tables
        )
        if not tables:
            raise UsageError(
                "SANEConfig, tables",
                f"{str(self.tables)[:80]} was given",
                f"sizes of three tables of up to {_MAX_TABLE} rows are needed, or none",
                "see help(SANEConfig)",
            )
        if self.model_width % self.heads or (self.tables and self.model_width % 2):
            raise UsageError(
                "the SANE's shape",
                f"the width is {self.model_width} with {self.heads} heads",
                "each head needs an equal share",
                "choose a width that the heads divide",
            )

    def window_and_halo(self, window: int | None, halo: int | None) -> tuple[int, int]:
        """Return the given window and halo, by default those of the model."""
        return window or self.window, self.halo if halo is None else halo

    @property
    def side(self) -> int:
        """Return the number of side-information values per token."""
        return SIDE if self.scale == "tensor" else 0

    @property
    def trained_span(self) -> int:
        """Return the number of tokens of a training window."""
        return self.span or self.window + 2 * self.halo

    def positions(self, layout: TokenLayout, start: int, stop: int) -> torch.Tensor:
        """Return the positions of a range of tokens as the model reads them, (stop - start, P).

        Raises `SourceError` if the network exceeds the learned tables.
        """
        if not self.tables:
            features = position_features if self.places == "absolute" else relative_features
            return features(layout, start, stop)
        positions = layout.positions(start, stop)
        needed = positions.amax(0) + 1
        if bool((needed > torch.tensor(self.tables, device=needed.device)).any()):
            raise SourceError(
                "the network",
                f"its tokens, slots and channels go up to {tuple(needed.tolist())}",
                f"the learned places of this SANE end at {self.tables}",
                "use a SANE with computed places, which have no end",
            )
        return positions


class SANE(nn.Module):
    """An autoencoder over windows of weight tokens, (K, S, D) -> (K, S, L) -> (K, S, D)."""

    def __init__(self, config: SANEConfig) -> None:
        super().__init__()
        self.config = config
        width, latent = config.model_width, config.latent_width
        self.tokens_in = nn.Linear(config.token_width + config.side, width, bias=False)
        # Saved models have the keys `places_in` and `places_back`.
        self.places_in = _position_embedding(config)
        self.encoder = _transformer(config)
        self.latents_out = nn.Linear(width, latent, bias=False)
        self.latents_in = nn.Linear(latent, width, bias=False)
        # Learned tables are the same ones before both stacks.
        self.places_back = None if config.tables else _position_embedding(config)
        self.decoder = _transformer(config)
        self.tokens_out = nn.Linear(width, config.token_width + config.side, bias=False)
        span = config.trained_span if config.projection == "window" else 1
        self.project = _projection_head(latent * span, config.projection_width)
        if config.scale == "zoo":
            self.register_buffer(
                "zoo_scale", torch.tensor([[0.0, 1.0]], dtype=torch.float32).repeat(config.slots, 1)
            )
        # What stands in for a token that is not shown.
        self.hidden_token = nn.Parameter(torch.empty(width)) if config.fills else None
        if not self.latents_out.weight.is_meta:  # else a file's weights follow
            _initialize(self, config.layers)

    def encode(
        self,
        values: torch.Tensor,
        side: torch.Tensor,
        positions: torch.Tensor,
        hidden: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Encode values (K, S, D) with side information (K, S, 4) at positions (K, S, P) to (K, S, L).

        A latent has mean 0 and deviation 1 over its L numbers, so that a sampler's bandwidth means the
        same everywhere. Of tokens where `hidden` (K, S) is true only the positions are read, by a model that
        `fills`: their latents follow from the others.
        """
        read = torch.cat([values, side[..., : self.config.side]], -1)
        tokens = self.tokens_in(read)
        if hidden is not None:
            assert self.hidden_token is not None, "this SANE was not trained to fill"
            tokens = torch.where(hidden[..., None], self.hidden_token.to(tokens.dtype), tokens)
        x = tokens + self.places_in(positions)
        latents = self.latents_out(self.encoder(x)).float()
        return layer_norm(latents, latents.shape[-1:]) if self.config.is_normed else latents

    def decode(
        self, latents: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode latents (K, S, L) at positions (K, S, P) to values (K, S, D) and side (K, S, 4)."""
        embedding = self.places_in if self.places_back is None else self.places_back
        x = self.latents_in(latents) + embedding(positions)
        out = self.tokens_out(self.decoder(x)).float()
        return out[..., : self.config.token_width], out[..., self.config.token_width :]

    def project_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Project the latents (K, S, L) of each window to what the contrastive loss compares, (K, Z)."""
        if self.config.projection == "mean":
            return self.project(latents.mean(1))  # type: ignore[no-any-return]
        missing = self.config.trained_span - latents.shape[1]  # a short network fills a part
        return self.project(pad(latents, (0, 0, 0, missing)).flatten(1))  # type: ignore[no-any-return]


def _position_embedding(config: SANEConfig) -> nn.Module:
    if config.tables:
        return LearnedPositions(config.tables, config.model_width)
    width = POSITION_WIDTH if config.places == "absolute" else RELATIVE_WIDTH
    return nn.Linear(width, config.model_width, bias=False)


def _transformer(config: SANEConfig) -> nn.TransformerEncoder:
    block = nn.TransformerEncoderLayer(
        config.model_width,
        config.heads,
        4 * config.model_width,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
        bias=False,
    )
    norm = nn.LayerNorm(config.model_width, bias=False) if config.is_normed else None
    return nn.TransformerEncoder(block, config.layers, norm, enable_nested_tensor=False)


def _projection_head(inputs: int, width: int) -> nn.Sequential:
    """Build the contrastive projection head, for mean latents or for flattened windows."""
    steps = []
    for size in (inputs, width):
        steps += [nn.Linear(size, width, bias=False), nn.LayerNorm(width, bias=False), nn.ReLU()]
    return nn.Sequential(*steps)


def _initialize(model: SANE, layers: int) -> None:
    """Draw weights from N(0, 0.02); residual projections are scaled by 1/sqrt(2 layers)."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            nn.init.normal_(module.self_attn.in_proj_weight, std=0.02)
            for projection in (module.self_attn.out_proj, module.linear2):
                nn.init.normal_(projection.weight, std=0.02 / (2 * layers) ** 0.5)
    if model.hidden_token is not None:
        nn.init.normal_(model.hidden_token, std=0.02)
