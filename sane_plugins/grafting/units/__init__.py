"""The units of a network: read from a module, with blocks, channel groups and neighbours."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
