"""Properties of a network from its weights alone: heads, their fit, their intervals."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
