"""What is wrong with a network: findings, each a fault or a note, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sane_plugins.display import ShortRepr

Severity = Literal["fault", "note"]
Kind = Literal[
    "not_finite",
    "huge",
    "constant",
    "initial_weights",
    "never_trained",
    "half_loaded",
    "fresh_classifier",
    "fresh_norm",
    "dead_channels",
    "collapsed_norm",
    "negative_variance",
    "unmeasured_norm",
    "unlike_its_kind",
]
KINDS: tuple[Kind, ...] = Kind.__args__  # type: ignore[attr-defined]
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was found, in words, with the layers or tensors that it is about.

    A fault is no property of a network in working order; a note may be meant.
    """

    kind: Kind
    severity: Severity
    text: str
    places: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Health(ShortRepr):
    """What `check_network` found of one network. `ignored` kinds do not count for the verdict."""

    source: str
    findings: tuple[Finding, ...]
    ignored: tuple[str, ...] = ()

    @property
    def faults(self) -> tuple[Finding, ...]:
        """Return the faults that count."""
        return tuple(
            x for x in self.findings if x.severity == "fault" and x.kind not in self.ignored
        )

    @property
    def is_healthy(self) -> bool:
        """Return whether there is no fault."""
        return not self.faults

    @property
    def verdict(self) -> str:
        """Return the kinds of faults in words, or that there is none: healthy, or initial weights."""
        kinds = dict.fromkeys(x.kind.replace("_", " ") for x in self.faults)
        is_initial = any(x.kind == "initial_weights" for x in self.findings)
        return ", ".join(kinds) or ("initial weights" if is_initial else "healthy")


def some(names: Sequence[str]) -> str:
    """Return a few of many names as text."""
    further = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{further}"
