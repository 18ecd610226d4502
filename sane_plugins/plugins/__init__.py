"""Plugins of others: which are loaded, what they must answer, and what is said of those that do not.

Light at import: `--help` loads plugins.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
