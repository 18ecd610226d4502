"""The user's images: read, standardised, described, and how well a network does on them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
