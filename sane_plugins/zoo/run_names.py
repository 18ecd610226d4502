"""Names of training runs and checkpoints, parsed from file paths."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from sane_plugins.errors import UsageError
from sane_plugins.formats import INDEX
from sane_plugins.zoo.index import Property

_NUMBER_PATTERN = re.compile(
    r"(?i)(?<![a-z])(epoch|ep|step|iteration|iter|checkpoint|ckpt)s?[-_=. ]?(\d+)(?!\d)"
)
_SEPARATORS = "-_=. "
_PROPERTY_BY_WORD = {
    "epoch": "epoch",
    "ep": "epoch",
    "step": "step",
    "iteration": "step",
    "iter": "step",
}


@dataclass(frozen=True)
class RunName:
    """A network, one of its checkpoints, and properties parsed from the file name.

    Files are one network if their `template` is the same; where it is empty, if `network` is. Two templates
    may suggest one name for their networks; the second is then called by its template.
    """

    network: str
    checkpoint: str
    properties: dict[str, Property] = field(default_factory=dict)
    template: str = ""


def name_by_number(source: str) -> RunName:
    """Name a file; files that differ only in an epoch, step or checkpoint number share a network."""
    plain = _without_suffix(source)
    numbers = _NUMBER_PATTERN.findall(plain)
    parts = [_without_numbers(part) for part in plain.split("/")]
    return RunName(
        "/".join(part for part in parts if part) or plain,
        "-".join(number for _, number in numbers) or "0",
        _properties(numbers),
        _NUMBER_PATTERN.sub(lambda found: f"{found[0][: -len(found[2])]}N", plain),
    )


def _without_numbers(part: str) -> str:
    """Return a part of a path without numbers and what sets them off; one without numbers as it is."""
    unnumbered = _NUMBER_PATTERN.sub("", part)
    return part if unnumbered == part else unnumbered.strip(_SEPARATORS)


def name_by_file(source: str) -> RunName:
    """Name a file, treating every file as a separate network."""
    return RunName(
        _without_suffix(source), "0", _properties(_NUMBER_PATTERN.findall(_without_suffix(source)))
    )


def name_by_pattern(pattern: str) -> Callable[[str], RunName]:
    """Return a function that names files by a regular expression; raise `UsageError` if it is invalid.

    The network is the group `network`, else the first group, else the whole match; the checkpoint is the
    group `checkpoint`, else the file's number or name. Other files are named by `name_by_number`.
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
        match, fallback = expression.search(source), name_by_number(source)
        if not match:
            return fallback
        groups = match.groupdict()
        network = groups.get("network") or match.group(1 if match.groups() else 0)
        number = (
            fallback.checkpoint
            if fallback.properties
            else PurePosixPath(_without_suffix(source)).name
        )
        checkpoint = (groups.get("checkpoint") or number).replace("/", "-")
        return RunName(network or fallback.network, checkpoint, fallback.properties)

    return name


def _without_suffix(source: str) -> str:
    """Return a source without its file suffix."""
    if source.endswith(INDEX):
        return source.removesuffix(INDEX)
    path = PurePosixPath(source)
    return str(path.with_suffix("")) if not path.suffix[1:].isdigit() else source


def _properties(numbers: list[tuple[str, str]]) -> dict[str, Property]:
    named = ((_PROPERTY_BY_WORD.get(word.lower()), number) for word, number in numbers)
    return {name: int(number) for name, number in named if name}
