"""Compute something of all networks below a folder of any size; results are Parquet, and a run can go on."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
