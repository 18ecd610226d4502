"""A torch program's own modules: initialised in place, and predicted from while they train."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
