"""Networks on disk: read on demand and safely, whatever the form; written whole."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
