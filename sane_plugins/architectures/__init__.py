"""How a network is built: by our families, a function, a collection's name; for other classes, channels."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
