"""Networks as weight graphs: layers, tokens and scale; conversion from and to torch modules."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
