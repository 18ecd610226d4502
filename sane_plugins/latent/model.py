"""The SANE autoencoder (spec section 3; paper section 3.2).

z = W_c Enc(W_t x + P), x' = W_d Dec(W_e z + P), with computed places P instead of learned tables, and the
scale of each slot as four more numbers of every token, encoded and decoded with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import layer_norm

from sane_plugins.latent.places import WIDTH as PLACE_WIDTH
from sane_plugins.weights.scale import SIDE


@dataclass(frozen=True, kw_only=True)
class SANEConfig:
    """The shape of a SANE and the window it works in; `heads` divides `model_width`."""

    token_width: int = 128
    latent_width: int = 64
    model_width: int = 192
    heads: int = 3
    layers: int = 4
    projection_width: int = 30
    window: int = 48
    halo: int = 16


class SANE(nn.Module):
    """An autoencoder over windows of weight tokens, (K, S, D) -> (K, S, L) -> (K, S, D)."""

    def __init__(self, config: SANEConfig) -> None:
        super().__init__()
        self.config = config
        width, latent = config.model_width, config.latent_width
        self.tokens_in = nn.Linear(config.token_width + SIDE, width, bias=False)
        self.places_in = nn.Linear(PLACE_WIDTH, width, bias=False)
        self.encoder = _blocks(config)
        self.latents_out = nn.Linear(width, latent, bias=False)
        self.latents_in = nn.Linear(latent, width, bias=False)
        self.places_back = nn.Linear(PLACE_WIDTH, width, bias=False)
        self.decoder = _blocks(config)
        self.tokens_out = nn.Linear(width, config.token_width + SIDE, bias=False)
        self.project = _projection(latent, config.projection_width)
        _initialise(self, config.layers)

    def encode(
        self, values: torch.Tensor, side: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        """Encode values (K, S, D) with side information (K, S, 4) at places (K, S, P) to (K, S, L).

        A latent has mean 0 and deviation 1 over its L numbers, so that a sampler's bandwidth means the
        same everywhere.
        """
        x = self.tokens_in(torch.cat([values, side], -1)) + self.places_in(places)
        latents = self.latents_out(self.encoder(x))
        return layer_norm(latents.float(), latents.shape[-1:])

    def decode(
        self, latents: torch.Tensor, places: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode latents (K, S, L) at places (K, S, P) to values (K, S, D) and side (K, S, 4)."""
        x = self.latents_in(latents) + self.places_back(places)
        out = self.tokens_out(self.decoder(x)).float()
        return out[..., : self.config.token_width], out[..., self.config.token_width :]


def _blocks(config: SANEConfig) -> nn.TransformerEncoder:
    block = nn.TransformerEncoderLayer(
        config.model_width, config.heads, 4 * config.model_width, dropout=0.0, activation="gelu",
        batch_first=True, norm_first=True, bias=False,
    )  # fmt: skip
    norm = nn.LayerNorm(config.model_width, bias=False)
    return nn.TransformerEncoder(block, config.layers, norm, enable_nested_tensor=False)


def _projection(latent: int, width: int) -> nn.Sequential:
    """Build the contrastive head; it reads the mean latent, so any window length fits."""
    steps = []
    for inputs in (latent, width):
        steps += [nn.Linear(inputs, width, bias=False), nn.LayerNorm(width, bias=False), nn.ReLU()]
    return nn.Sequential(*steps)


def _initialise(model: SANE, layers: int) -> None:
    """Draw weights from N(0, 0.02); what adds to the residual stream is scaled by 1/sqrt(2 layers)."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            nn.init.normal_(module.self_attn.in_proj_weight, std=0.02)
            for last in (module.self_attn.out_proj, module.linear2):
                nn.init.normal_(last.weight, std=0.02 / (2 * layers) ** 0.5)
