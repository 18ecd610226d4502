"""From prompt networks to weights of a target: prompts, samplers, transfer, scale."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
