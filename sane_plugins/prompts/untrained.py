"""Which prompt networks look never trained, or are broken: they have nothing to lend, and this is said."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sane_plugins.grafting import PromptNetwork
from sane_plugins.health import Finding, check_network

_INSTEAD = "name a file of a trained network, or --prompts cache"
_MOST_SHOWN = 3


def untrained_notes(networks: Sequence[PromptNetwork], built: Collection[str] = ()) -> list[str]:
    """Return notes on the prompts whose weights look never trained, in whole or in part, or broken.

    `built` has the names of those that were built by a name, with weights as the builder draws them.
    Networks of which the same is said share a note.
    """
    told: dict[str, list[str]] = {}
    for network in networks:
        name = network.info.name
        if said := _say(check_network(network.graph).findings, name in built):
            told.setdefault(said, []).append(name)
    return [f"{_subject(names)}: {said}" for said, names in told.items()]


def _say(findings: Sequence[Finding], is_built: bool) -> str:
    """Return what a prompt's weights lack and what to name instead; empty where they lack nothing."""
    text_of = {finding.kind: finding.text for finding in findings}
    if bad := text_of.get("not_finite"):
        return f"broken weights ({bad}); name a checkpoint from before that"
    if "never_trained" in text_of:
        if is_built:
            return f"a name, built with fresh weights, which have learned nothing; {_INSTEAD}"
        return f"weights that look never trained, so that they lend nothing learned; {_INSTEAD}"
    if partly := text_of.get("half_loaded"):
        return f"weights that look trained only in part ({partly}); {_INSTEAD}"
    if initial := text_of.get("initial_weights"):
        return f"{initial}; {_INSTEAD}"
    return ""


def _subject(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return f"prompt{'s' * (len(names) > 1)} {', '.join(names[:_MOST_SHOWN])}{more}"
