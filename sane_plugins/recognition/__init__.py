"""Which architecture is a file of? Its names and shapes are compared with those of known architectures."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
