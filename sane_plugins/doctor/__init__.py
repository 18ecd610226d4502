"""What is wrong with an installation: versions, extras, plugins, devices, and a self-test."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
