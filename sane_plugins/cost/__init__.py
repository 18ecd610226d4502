"""What does it take to run a network? Counted from its architecture; how long that takes here, or would."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
