"""Networks that lend their weights: reading them from what users name, and what they have seen."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
