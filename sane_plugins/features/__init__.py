"""What is read of a network: encodings by an autoencoder, and layer statistics."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
