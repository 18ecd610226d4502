"""The encoders, samplers, transfers, heads and engines that ship with the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sane_plugins import hookimpl

if TYPE_CHECKING:
    from sane_plugins.features import Encoder
    from sane_plugins.generation import Sampler
    from sane_plugins.grafting import TransferMethod
    from sane_plugins.properties import AnyHead


class Portfolio:
    """Encoders, samplers, transfers, property heads and engines by name."""

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
    def sane_engines(self) -> Mapping[str, Any]:
        """Return the engine that runs a job here, in this process."""
        return {"local": map}
