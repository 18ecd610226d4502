"""Networks on disk: validated before reading, tensors read lazily, files written atomically."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
