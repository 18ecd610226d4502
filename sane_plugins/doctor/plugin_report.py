"""One installed plugin: where it is from, how long it took to load, what it offers and would answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sane_plugins.host import Host
from sane_plugins.plugins import Reply, kind_of

_OFFERING = {
    "sane_encoders": "encoders",
    "sane_samplers": "samplers",
    "sane_transfers": "transfers",
    "sane_property_heads": "property heads",
    "sane_engines": "engines",
    "sane_prompts": "prompts",
    "sane_published_networks": "published networks",
    "sane_commands": "commands",
}
_READING = ("sane_open", "sane_build", "sane_cost")


@dataclass(frozen=True, kw_only=True)
class PluginReport:
    """A plugin: `seconds` of its import, `offers` by kind, `answers` to the source by hook.

    `seconds` are None where nothing was imported. `problems` are what hosts leave out of it, and what its
    author should know.
    """

    name: str
    distribution: str
    version: str
    is_ours: bool
    seconds: float | None
    hooks: tuple[str, ...]
    offers: Mapping[str, tuple[str, ...]]
    answers: Mapping[str, str]
    problems: tuple[str, ...]


def report_plugins(host: Host, source: Any = None) -> list[PluginReport]:
    """Describe every plugin, those that did not load too; each is asked for its offers, and for a source."""
    offers: dict[str, dict[str, tuple[str, ...]]] = {}
    for hook, kind in _OFFERING.items():
        for reply in host.replies(hook):
            names = tuple(reply.answer) if isinstance(reply.answer, Mapping) else ()
            offers.setdefault(reply.plugin, {})[kind] = names
    answers: dict[str, dict[str, str]] = {}
    if source is not None:
        for hook in _READING:
            arguments = {"sane_build": {"classes": None}, "sane_cost": {"options": None}}
            for reply in host.replies(hook, source=source, **arguments.get(hook, {})):
                answers.setdefault(reply.plugin, {})[hook] = _told(reply)
    reports = [
        PluginReport(
            name=x.name,
            distribution=x.distribution,
            version=x.version,
            is_ours=host.is_own(x.name),
            seconds=host.load_seconds.get(x.name),
            hooks=x.hooks,
            offers=offers.get(x.name, {}),
            answers=answers.get(x.name, {}),
            problems=_problems(host, x.name),
        )
        for x in host.plugins()
        if x.name in host.load_seconds  # the rest was registered by hand, such as progress bars
    ]
    loaded = {x.name for x in reports}
    missing = dict.fromkeys(x.plugin for x in host.problems if x.plugin not in loaded)
    return reports + [_not_loaded(host, name) for name in missing]


def _not_loaded(host: Host, name: str) -> PluginReport:
    return PluginReport(
        name=name,
        distribution="",
        version="",
        is_ours=host.is_own(name),
        seconds=host.load_seconds.get(name),
        hooks=(),
        offers={},
        answers={},
        problems=_problems(host, name),
    )


def _problems(host: Host, name: str) -> tuple[str, ...]:
    failures = [
        f"{x.place} is left out: {x.error}" if x.place else f"it is left out: {x.error}"
        for x in host.problems
        if x.plugin == name
    ]
    return (*failures, *(x.text for x in host.notes if x.plugin == name))


def _told(reply: Reply) -> str:
    """Return what a plugin answered, in a few words."""
    if reply.error is not None:
        return f"fails: {reply.error}"
    if reply.answer is None:
        return "passes"
    return f"answers with {kind_of(reply.answer)}, in {reply.seconds:.2f} s"
