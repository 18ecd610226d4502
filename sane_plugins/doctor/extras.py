"""Which extras of the package are installed, read from its own metadata."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

DISTRIBUTION = "sane-plugins"
_FOR_DEVELOPERS = ("benchmarks", "dev", "docs")  # of this package: no user misses them
_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)(?P<versions>[^;\[\]]*);.*extra\s*==\s*['\"](?P<extra>[\w-]+)['\"]"
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
    for found in filter(None, map(_REQUIREMENT.match, requirements)):
        if found["extra"] not in _FOR_DEVELOPERS and found["name"] != DISTRIBUTION:
            needed = lacking.setdefault(found["extra"], [])
            needed += _lacks(found["name"], found["versions"].strip(" ()"))
    return [Extra(name=name, lacking=tuple(x)) for name, x in sorted(lacking.items())]


def _lacks(name: str, needed: str) -> list[str]:
    """Return in a list what is lacking of a distribution."""
    try:
        installed = version(name)
    except PackageNotFoundError:
        return [f"{name}{needed}"]
    least = re.search(r">=\s*([\d.]+)", needed)
    is_old = least is not None and _numbers(installed) < _numbers(least[1])
    return [f"{name}{needed} (installed is {installed})"] if is_old else []


def _numbers(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()
