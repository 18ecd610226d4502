"""Names of networks that libraries build, from the shipped index: no library is imported for them."""

from __future__ import annotations

from difflib import get_close_matches

from sane_plugins.recognition.index import indexed_architectures

_PREFERRED = "torchvision"  # builds a name that several libraries have
_SUGGESTED = 3


def library_sources(name: str) -> list[str]:
    """Return what libraries call a network of that name, the one that is built first: `timm:resnet18`."""
    found = {library for library, known in _names() if known == name}
    return [f"{library}:{name}" for library in sorted(found, key=lambda x: (x != _PREFERRED, x))]


def close_names(name: str) -> list[str]:
    """Return the most similar names of all libraries."""
    return get_close_matches(name, sorted({known for _, known in _names()}), n=_SUGGESTED)


def _names() -> set[tuple[str, str]]:
    """Return (library, name) of every architecture, without what says its form (`,classes=0`)."""
    sources = (architecture.source.split(",")[0] for architecture in indexed_architectures())
    return {(library, name) for library, _, name in (x.partition(":") for x in sources)}
