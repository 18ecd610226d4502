"""What a network is: graphs, tokens, scale; torch modules in and out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
