"""From trained networks to weights of another architecture: match, graft, fit to images, classify."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
