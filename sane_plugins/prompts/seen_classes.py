"""Which of a task's classes a prompt network was trained on, by their names: figures on these flatter it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sane_plugins.grafting import PromptInfo

_NUMBER = re.compile(r"_n\d{8}$")  # of WordNet, behind the name of a folder
_MOST_SHOWN = 3


@dataclass(frozen=True)
class SeenClasses:
    """The classes of a task that a prompt network has seen.

    `is_known` is False where one of the two has no names of classes; `seen` is then empty.
    """

    info: PromptInfo
    seen: tuple[str, ...]
    total: int
    is_known: bool

    @property
    def is_unseen(self) -> bool:
        """Return whether it is known that no name of a class is common to both."""
        return self.is_known and not self.seen

    def describe(self) -> str:
        """Return a clause such as `2 of the task's 10 classes (orange, reel) are among its 1,000`."""
        if not self.info.classes:
            return "which classes it has seen is not known"
        count = f"{len(self.info.classes):,}"
        if not self.is_known:
            return f"it has seen {count} classes; those of the task have no names to compare"
        if not self.seen:
            return f"none of the task's {self.total} classes is among its {count} by name"
        names = ", ".join(name.partition(",")[0] for name in self.seen[:_MOST_SHOWN])
        more = ", ..." if len(self.seen) > _MOST_SHOWN else ""
        verb = "is" if len(self.seen) == 1 else "are"
        return (
            f"{len(self.seen)} of the task's {self.total} classes ({names}{more}) {verb} among its"
            f" {count}, so it does better there than on classes that it has not seen"
        )


def class_notes(infos: Sequence[PromptInfo], task_classes: Sequence[str]) -> list[str]:
    """Return what to say of prompts: what each was trained on, and which of the task's classes it has seen.

    Networks of which nothing is known share a note.
    """
    told = [_note(info, seen_classes(info, task_classes)) for info in infos if info.classes]
    unknown = list(dict.fromkeys(info.name for info in infos if not info.classes))
    if unknown:
        more = f" and {len(unknown) - _MOST_SHOWN} more" if len(unknown) > _MOST_SHOWN else ""
        subject, has = ("prompts", "they have") if len(unknown) > 1 else ("prompt", "it has")
        names = f"{', '.join(unknown[:_MOST_SHOWN])}{more}"
        told.append(f"{subject} {names}: which classes {has} seen is not known")
    return told


def _note(info: PromptInfo, found: SeenClasses) -> str:
    licence = f"licence {info.licence}" if info.licence else ""
    about = "; ".join(filter(None, (info.task and f"trained on {info.task}", licence)))
    return f"prompt {info.name}{f' ({about})' if about else ''}: {found.describe()}"


def seen_classes(info: PromptInfo, task_classes: Sequence[str]) -> SeenClasses:
    """Compare the names of a task's classes with those that a prompt network was trained on.

    A name is one or several synonyms between commas; case, and `_` for a space, do not count. Numbers are no
    names.
    """
    known = set().union(*map(_synonyms, info.classes)) if info.classes else set()
    names = [_synonyms(name) for name in task_classes]
    is_known = bool(known) and all(any(not word.isdigit() for word in words) for words in names)
    pairs = zip(task_classes, names, strict=True)
    seen = tuple(name for name, words in pairs if words & known) if is_known else ()
    return SeenClasses(info, seen, len(task_classes), is_known)


def _synonyms(name: str) -> frozenset[str]:
    """Return the words for a class, with WordNet's number where it is told."""
    number = _NUMBER.search(name)
    words = [*_NUMBER.sub("", name).split(","), *([number[0][1:]] if number else [])]
    plain = (word.replace("_", " ").strip().casefold() for word in words)
    return frozenset(word for word in plain if word)
