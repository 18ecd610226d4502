"""What a network file holds: how much was read, what its tensors are like, as words and as a picture."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
