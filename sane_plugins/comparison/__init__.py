"""What changed between two networks? Tensors compared in pairs, layer by layer, and a verdict."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
