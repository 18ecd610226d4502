"""What matched units lend: layers composed, folded, and brought to the target's shapes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
