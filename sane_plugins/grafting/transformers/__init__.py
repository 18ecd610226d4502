"""Attention by what is computed: found in a run, moved between transformers of other sizes, or drawn."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
