"""How is a file written whole or not at all, and which files may a run write?"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
