"""What the author of a plugin tests it with: checks of each kind of plugin, and fixtures for pytest.

Light at import: pytest loads the fixtures in every run.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
