"""Names of training runs and checkpoints, parsed from the paths of files."""

from __future__ import annotations

import re
from collections.abc import Callable
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


def name_by_number(source: str) -> RunName:
    """Name a file; those that differ by the number of an epoch, step or checkpoint alone are one network."""
    plain, numbers = _without_suffix(source), _NUMBER.findall(_without_suffix(source))
    without = _NUMBER.sub("", plain)
    parts = [part.strip("-_=. ") for part in without.split("/")]
    network = "/".join(part for part in parts if part) or plain
    return RunName(network, "-".join(number for _, number in numbers) or "0", _properties(numbers))


def name_by_file(source: str) -> RunName:
    """Name a file that is a network of its own."""
    return RunName(
        _without_suffix(source), "0", _properties(_NUMBER.findall(_without_suffix(source)))
    )


def name_by_pattern(pattern: str) -> Callable[[str], RunName]:
    """Return a function that names files by a regular expression; raise `UsageError` for what is none.

    Its group `network`, or its first, or all of it, is the network; the group `checkpoint` names the
    checkpoint, else the file's number or name. Files that it does not match are named by `name_by_number`.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"--network-pattern {pattern}",
            f"it is no regular expression ({error})",
            "one is needed",
            r"write for example 'net(\d+)'",
        ) from error

    def name(source: str) -> RunName:
        match, usual = expression.search(source), name_by_number(source)
        if not match:
            return usual
        groups = match.groupdict()
        network = groups.get("network") or match.group(1 if match.groups() else 0)
        number = (
            usual.checkpoint if usual.properties else PurePosixPath(_without_suffix(source)).name
        )
        checkpoint = (groups.get("checkpoint") or number).replace("/", "-")
        return RunName(network or usual.network, checkpoint, usual.properties)

    return name


def _without_suffix(source: str) -> str:
    """Return a source without the suffix of its form."""
    if source.endswith(INDEX):
        return source.removesuffix(INDEX)
    path = PurePosixPath(source)
    return str(path.with_suffix("")) if not path.suffix[1:].isdigit() else source


def _properties(numbers: list[tuple[str, str]]) -> dict[str, Property]:
    named = ((_PROPERTY.get(word.lower()), number) for word, number in numbers)
    return {name: int(number) for name, number in named if name}
