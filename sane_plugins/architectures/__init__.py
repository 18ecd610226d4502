"""Build networks: our families, factory functions and model libraries, with any classes and channels."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
