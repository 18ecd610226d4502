"""What a run's operators tell of a network: which weight multiplies what, and which channels are one."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
