"""Quantised weights as formats store them: found by names and shapes of their parts, decoded to floats."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
