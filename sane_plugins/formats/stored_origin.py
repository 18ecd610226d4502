"""What a network's file says of its weights: that `sane-init` wrote them, as initial ones, and from what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sane_plugins.errors import SaneError
from sane_plugins.formats.guards import exists
from sane_plugins.formats.source_files import files_read
from sane_plugins.formats.stored_metadata import read_metadata
from sane_plugins.formats.writing import sidecar
from sane_plugins.weights import WeightGraph

_MOST_TEXT = 200  # characters of a name, which may be a stranger's
_MOST_ENTRIES = 256
_MOST_CONVERSIONS = 8  # one of another
# Kinds of initial weights to which no prompt lends anything, as provenances call them.
_WITHOUT_PROMPTS = ("default", "default, classifier fitted", "structured default")
_LATER = 2.0  # seconds: weights that are newer than what is told of them were written by another


@dataclass(frozen=True)
class InitialWeights:
    """Initial weights, by the word of their file: the chosen candidate, and the prompts that lent to it.

    A training that saves its network does not write that.
    """

    chosen: str
    prompts: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return a clause on what they are."""
        return f"initial weights that sane-init wrote ({self.chosen}), not trained since"


def initial_weights(graph: WeightGraph) -> InitialWeights | None:
    """Return what a network's file says of its initial weights; None where it does not say that it has any.

    What is told beside a file is about the weights that were written with it, and not about later ones.
    """
    if graph.container == "module":
        return None
    path = next((x for x in files_read(graph) if exists(x) and x.is_file()), None)
    if path is None or (path.suffix != ".safetensors" and _is_older(sidecar(path), path)):
        return None
    try:
        told: Any = read_metadata(path)
    except SaneError:  # what is broken there says nothing
        return None
    for _ in range(_MOST_CONVERSIONS):
        told = _mapping(told)
        if provenance := _mapping(told.get("provenance")):
            return _read(provenance)
        told = _mapping(told.get("conversion")).get("origin")
    return None


def _read(provenance: Mapping[str, Any]) -> InitialWeights | None:
    """Return what a provenance says of the chosen candidate; None where it is of nothing that we write."""
    kind = _text(_mapping(provenance.get("recipe")).get("kind"))
    if not kind:
        return None
    scores = map(_mapping, _list(provenance.get("scores")))
    chosen = next((_text(x.get("name")) for x in scores if x.get("chosen") is True), "")
    prompts = [_text(_mapping(x).get("source")) for x in _list(provenance.get("prompts"))]
    lenders = () if kind in _WITHOUT_PROMPTS else tuple(filter(None, prompts))
    return InitialWeights(chosen or kind, lenders)


def _is_older(beside: Path, path: Path) -> bool:
    """Return whether a file beside another, as far as there is one, was there before that was written."""
    try:
        return beside.stat().st_mtime + _LATER < path.stat().st_mtime
    except OSError:
        return False


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value[:_MOST_ENTRIES] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value[:_MOST_TEXT] if isinstance(value, str) else ""
