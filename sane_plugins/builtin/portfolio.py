"""The encoders, samplers, transfers, prompt networks, heads and engines that ship."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from sane_plugins import hookimpl

if TYPE_CHECKING:
    from sane_plugins.engines import Engine
    from sane_plugins.features import Encoder
    from sane_plugins.generation import Sampler
    from sane_plugins.grafting import PromptOffer, TransferMethod
    from sane_plugins.properties import AnyHead

_PHOTO_NETWORKS = Path(str(files("sane_plugins") / "data" / "photo_networks"))


class Portfolio:
    """Encoders, samplers, transfers, property heads, prompt networks and engines by name."""

    @hookimpl(trylast=True)
    def sane_encoders(self) -> Mapping[str, Encoder]:
        """Return the autoencoder and the layer statistics."""
        from sane_plugins.features import ENCODERS

        return ENCODERS

    @hookimpl(trylast=True)
    def sane_samplers(self) -> Mapping[str, Sampler]:
        """Return the samplers, the reference's setting among them."""
        from sane_plugins.generation import KDE, Diffusion, Gaussian

        return {
            "kde": KDE(),
            "kde-per-token": KDE(prompt="token"),
            "kde-reference": KDE(noise="shared"),
            "gaussian": Gaussian(),
            "diffusion": Diffusion(),
        }

    @hookimpl(trylast=True)
    def sane_transfers(self) -> Mapping[str, TransferMethod]:
        """Return the ways to move weights into another architecture."""
        from sane_plugins.grafting import transfer_methods

        return transfer_methods()

    @hookimpl(trylast=True)
    def sane_property_heads(self) -> Mapping[str, AnyHead]:
        """Return the heads that were fitted on the published zoos."""
        from sane_plugins.properties import embedded_heads

        return embedded_heads()

    @hookimpl(trylast=True)
    def sane_prompts(self) -> Mapping[str, PromptOffer]:
        """Return the compact networks that were trained on photos."""
        from sane_plugins.grafting import PromptOffer
        from sane_plugins.prompts import read_card

        offers = {}
        for path in sorted(_PHOTO_NETWORKS.glob("*.safetensors")):
            if card := read_card(path):
                offers[card.info.name] = PromptOffer(info=card.info, load=partial(Path, path))
        return offers

    @hookimpl(trylast=True)
    def sane_engines(self) -> Mapping[str, Engine]:
        """Return the engine of one machine."""
        from sane_plugins.engines import LocalEngine

        return {"local": LocalEngine()}
