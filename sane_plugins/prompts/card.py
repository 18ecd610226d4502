"""What a prompt network's file says of it: an object in its metadata, which may be a stranger's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from sane_plugins.architectures import NO_TRUST, require_trusted
from sane_plugins.arguments import ArgumentTypeError, from_plain
from sane_plugins.errors import SaneError, SourceError
from sane_plugins.formats import read_metadata
from sane_plugins.grafting import PromptInfo

CARD_KEY = "prompt"  # of the metadata
_MOST_CLASSES = 100_000
_MOST_TEXT = 2000  # characters


@dataclass(frozen=True, kw_only=True)
class PromptCard:
    """What is known of a prompt network, and what builds it: one of our families, or torchvision's.

    `record` is how it was trained and measured, to be shown: plain data of JSON.
    """

    info: PromptInfo
    factory: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the card as a file holds it."""
        return asdict(self)


def read_card(path: Path) -> PromptCard | None:
    """Return what a network's file says of it; None where it says nothing.

    Raises `SourceError` where that is broken, or names a function that is neither ours nor torchvision's.
    """
    stored = read_metadata(path).get(CARD_KEY)
    if stored is None:
        return None
    try:
        card: PromptCard = from_plain(PromptCard, stored, f"{path}, its card")
        if card.factory:
            require_trusted(card.factory, NO_TRUST, path)
        _require_sensible(card.info)
    except (ArgumentTypeError, ValueError) as error:
        found = f"{error.place}: {error.found}" if isinstance(error, SaneError) else str(error)
        raise SourceError(
            path,
            f"what it says of itself is wrong ({found})",
            "a prompt's card has a name, classes and a preparation",
            "remove the entry 'prompt' from its metadata",
        ) from error
    return card


def _require_sensible(info: PromptInfo) -> None:
    """Raise `ValueError` for texts, numbers or lists that nothing could be made of."""
    texts = (info.name, info.source, info.task, info.licence, *info.classes)
    if len(info.classes) > _MOST_CLASSES or any(len(text) > _MOST_TEXT for text in texts):
        raise ValueError("a text or the list of classes is too long")
    if (told := info.preparation) is None:
        return
    if not 1 <= len(told.mean) == len(told.deviation) <= 4 or min(told.size) < 1:
        raise ValueError("its preparation is of no image")
    if not all(map(isfinite, told.mean)) or not all(0 < x < 1e6 for x in told.deviation):
        raise ValueError("its mean or deviation cannot be computed with")
