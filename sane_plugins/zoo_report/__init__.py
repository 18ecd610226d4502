"""What is in a pile of networks? Everything that weights tell of them, on one page."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
