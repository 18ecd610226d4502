"""SANE itself: halo windows, positions, the autoencoder, whole networks to latents and back, its file."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
