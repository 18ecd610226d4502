"""Which training run a file is from, and which checkpoint of it: read from its place and name."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from sane_plugins.errors import UsageError
from sane_plugins.formats import INDEX
from sane_plugins.zoo.index import Property

_NUMBER = re.compile(
    r"(?i)(?<![a-z])(epoch|ep|step|iteration|iter|checkpoint|ckpt)s?[-_=. ]?(\d+)(?!\d)"
)
_PROPERTY = {"epoch": "epoch", "ep": "epoch", "step": "step", "iteration": "step", "iter": "step"}


@dataclass(frozen=True)
class RunName:
    """A network, one of its checkpoints, and the properties that the name tells."""

    network: str
    checkpoint: str
    properties: dict[str, Property] = field(default_factory=dict)


def by_number(source: str) -> RunName:
    """Name a file; those that differ by the number of an epoch, step or checkpoint alone are one network."""
    plain, found = _plain(source), _NUMBER.findall(_plain(source))
    without = _NUMBER.sub("", plain)
    parts = [part.strip("-_=. ") for part in without.split("/")]
    network = "/".join(part for part in parts if part) or plain
    return RunName(network, "-".join(number for _, number in found) or "0", _told(found))


def each_alone(source: str) -> RunName:
    """Name a file that is a network of its own."""
    return RunName(_plain(source), "0", _told(_NUMBER.findall(_plain(source))))


def by_pattern(pattern: str, source: str) -> RunName:
    """Name a file by a regular expression: its group `network`, or its first, or all of it, is the network.

    The group `checkpoint` names the checkpoint, else the file's number or name. A file that the expression
    is not found in is named by `by_number`.
    """
    match = re.search(pattern, source)
    usual = by_number(source)
    if not match:
        return usual
    groups = match.groupdict()
    network = groups.get("network") or (match.group(1) if match.groups() else match.group(0))
    number = usual.checkpoint if usual.properties else PurePosixPath(_plain(source)).name
    checkpoint = (groups.get("checkpoint") or number).replace("/", "-")
    return RunName(network or usual.network, checkpoint, usual.properties)


def require_pattern(pattern: str) -> None:
    """Raise `UsageError` for what is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"--network-pattern {pattern}",
            f"it is no regular expression ({error})",
            "one is needed",
            r"write for example 'net(\d+)'",
        ) from error


def _plain(source: str) -> str:
    """Return a source without the suffix of its form."""
    return source.removesuffix(INDEX) if source.endswith(INDEX) else _without_suffix(source)


def _without_suffix(source: str) -> str:
    path = PurePosixPath(source)
    return str(path.with_suffix("")) if not path.suffix[1:].isdigit() else source


def _told(found: list[tuple[str, str]]) -> dict[str, Property]:
    named = ((_PROPERTY.get(word.lower()), number) for word, number in found)
    return {name: int(number) for name, number in named if name}
