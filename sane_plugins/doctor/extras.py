"""Which extras of the package are installed, read from its own metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

DISTRIBUTION = "sane-plugins"
_FOR_DEVELOPERS = ("benchmarks", "dev", "docs")  # of this package: no user misses them
_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)\s*(\[(?P<extras>[^\]]*)\])?(?P<versions>[^;\[\]]*);"
    r".*extra\s*==\s*['\"](?P<extra>[\w.-]+)['\"]"
)


@dataclass(frozen=True, kw_only=True)
class Extra:
    """An extra, the distributions that it lacks, with what is needed of each, and how to get it."""

    name: str
    lacking: tuple[str, ...]

    @property
    def install_line(self) -> str:
        """Return the command that installs it."""
        return f"pip install '{DISTRIBUTION}[{self.name}]'"


def list_extras() -> list[Extra]:
    """Return the extras that users have a use for; empty where the package itself is not installed."""
    try:
        requirements = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []
    lacking: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}  # of this package, that an extra is made of
    for found in filter(None, map(_REQUIREMENT.match, requirements)):
        needed = lacking.setdefault(found["extra"], [])
        extras = [x.strip() for x in (found["extras"] or "").split(",") if x.strip()]
        if found["name"] == DISTRIBUTION:
            others.setdefault(found["extra"], []).extend(extras)
        else:
            needed += _lacks(found["name"], extras, found["versions"].strip(" ()"))
    return [
        Extra(name=name, lacking=tuple(_with_those_of(name, lacking, others)))
        for name in sorted(lacking)
        if name not in _FOR_DEVELOPERS
    ]


def _with_those_of(
    name: str, lacking: Mapping[str, list[str]], others: Mapping[str, list[str]]
) -> list[str]:
    """Return what an extra lacks, itself and by the extras that it is made of."""
    seen: dict[str, None] = {name: None}
    waiting = [name]
    while waiting:
        new = [x for x in others.get(waiting.pop(), ()) if x not in seen]
        seen |= dict.fromkeys(new)
        waiting += new
    return [*dict.fromkeys(text for each in seen for text in lacking.get(each, ()))]


def _lacks(name: str, extras: Sequence[str], needed: str) -> list[str]:
    """Return in a list what is lacking of a distribution; its own extras are not looked into."""
    try:
        installed = version(name)
    except PackageNotFoundError:
        return [f"{name}[{','.join(extras)}]{needed}" if extras else f"{name}{needed}"]
    least = re.search(r">=\s*([\d.]+)", needed)
    is_old = least is not None and _numbers(installed) < _numbers(least[1])
    return [f"{name}{needed} (installed is {installed})"] if is_old else []


def _numbers(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()
