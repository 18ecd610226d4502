"""What can be done with the plugins of one manager.

Light at import: `--help` makes a host.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
