"""Initialise a network: draw candidates, score them, train the better ones longer, choose and report."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
