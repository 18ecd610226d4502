"""Which of a task's classes a prompt network was trained on, by their names: figures on these flatter it.

A name that only resembles one of the network's may mean the same or not: that is told as a possibility.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sane_plugins.grafting import PromptInfo

_NUMBER = re.compile(r"_n\d{8}$")  # of WordNet, behind the name of a folder
_WORDNET = re.compile(r"n\d{8}")
_WORD = re.compile(r"[^\W\d_]+")  # letters of any script
_MOST_SHOWN = 3


@dataclass(frozen=True)
class SeenClasses:
    """The classes of a task that a prompt network has seen.

    `near` are others, each with a class of the network's whose name is about it: of a plural, or with a word
    more in front (`cat`: `Persian cat`). `is_known` is False where one of the two has no names of classes;
    both are then empty.
    """

    info: PromptInfo
    seen: tuple[str, ...]
    total: int
    is_known: bool
    near: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_unseen(self) -> bool:
        """Return whether it is known that no name of a class is common to both, nor about the same."""
        return self.is_known and not self.seen and not self.near

    def describe(self) -> str:
        """Return a clause such as `2 of the task's 10 classes (orange, reel) are among its 1,000`."""
        if not self.info.classes:
            return "which classes it has seen is not known"
        count = f"{len(self.info.classes):,}"
        if not self.is_known:
            return f"it has seen {count} classes; those of the task have no names to compare"
        if not self.seen:
            none = f"none of the task's {self.total} classes is among its {count} by name"
            return f"{none}{self._describe_near()}"
        names = ", ".join(name.partition(",")[0] for name in self.seen[:_MOST_SHOWN])
        more = ", ..." if len(self.seen) > _MOST_SHOWN else ""
        verb = "is" if len(self.seen) == 1 else "are"
        return (
            f"{len(self.seen)} of the task's {self.total} classes ({names}{more}) {verb} among its"
            f" {count}, so it does better there than on classes that it has not seen"
            f"{self._describe_near()}"
        )

    def _describe_near(self) -> str:
        if not self.near:
            return ""
        shown = [f"{ours} as '{theirs}'" for ours, theirs in [*self.near.items()][:_MOST_SHOWN]]
        more = ", ..." if len(self.near) > _MOST_SHOWN else ""
        others = " others" if self.seen else ""
        return f"; it may have seen {len(self.near)}{others} under a like name ({', '.join(shown)}{more})"


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
    names. A like name has the same last words, the last one in the singular or plural.
    """
    known = set().union(*map(_synonyms, info.classes)) if info.classes else set()
    names = [_synonyms(name) for name in task_classes]
    is_known = bool(known) and all(any(not word.isdigit() for word in words) for words in names)
    pairs = zip(task_classes, names, strict=True)
    seen = tuple(name for name, words in pairs if words & known) if is_known else ()
    near = _like_names(info.classes, [x for x in task_classes if x not in seen]) if is_known else {}
    return SeenClasses(info, seen, len(task_classes), is_known, near)


def _like_names(known: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Return a known name that is like it for each of the names that has one."""
    by_last: dict[str, list[tuple[list[str], str]]] = {}
    for words, name in _names_in_words(known):
        for form in _number_forms(words[-1]):
            by_last.setdefault(form, []).append((words[:-1], name))
    near: dict[str, str] = {}
    for words, name in _names_in_words(names):
        for form in _number_forms(words[-1]):
            for before, found in by_last.get(form, ()):
                fewer = min(len(before), len(words) - 1)
                if before[len(before) - fewer :] == words[len(words) - 1 - fewer : -1]:
                    near.setdefault(name.partition(",")[0], found)
    return near


def _names_in_words(names: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    """Yield the words of each synonym of each name, and the synonym."""
    for name in names:
        for synonym in _NUMBER.sub("", name).split(","):
            words = _WORD.findall(synonym.casefold())
            if words and not _WORDNET.fullmatch(words[-1]):
                yield words, synonym.strip()


def _number_forms(word: str) -> set[str]:
    """Return a word, and what it is the plural of if it is one."""
    forms = {word}
    for plural, singular in (("s", ""), ("es", ""), ("ies", "y")):
        if word.endswith(plural) and len(word) > len(plural) + 1:
            forms.add(word.removesuffix(plural) + singular)
    return forms


def _synonyms(name: str) -> frozenset[str]:
    """Return the words for a class, with WordNet's number where it is told."""
    number = _NUMBER.search(name)
    words = [*_NUMBER.sub("", name).split(","), *([number[0][1:]] if number else [])]
    plain = (word.replace("_", " ").strip().casefold() for word in words)
    return frozenset(word for word in plain if word)
