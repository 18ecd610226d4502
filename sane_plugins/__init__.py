"""Encode networks of any architecture, predict their properties, and initialise new ones (SANE).

What a program needs is here, and loaded when it is first asked for: plugins import the markers in no time.

PYTEST_DONT_REWRITE: our fixtures for pytest make it warn of packages that were imported before it.
"""

import lazy_loader
from pluggy import HookimplMarker, HookspecMarker

__version__ = "0.1.0"

hookspec = HookspecMarker("sane_plugins")
hookimpl = HookimplMarker("sane_plugins")

__getattr__, __dir__, _loaded = lazy_loader.attach_stub(__name__, __file__)
__all__ = [*_loaded, "__version__", "hookimpl", "hookspec"]
