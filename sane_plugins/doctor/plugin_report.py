"""One installed plugin: where it is from, how long it took to load, what it offers and would answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sane_plugins.errors import SaneError
from sane_plugins.host import Host
from sane_plugins.plugins import Reply, kind_of
from sane_plugins.progress import Progress
from sane_plugins.testing import ContractError, quiet

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

    `seconds` are None where nothing was imported; `is_loaded` says whether it can be asked. `problems` are
    what hosts leave out of it, and what its author is to mend; `notes` what takes long.
    """

    name: str
    distribution: str
    version: str
    is_ours: bool
    is_loaded: bool
    seconds: float | None
    hooks: tuple[str, ...]
    offers: Mapping[str, tuple[str, ...]]
    answers: Mapping[str, str]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


class PluginReplies:
    """What each plugin of a host offers, and answers to a source; what it printed meanwhile is a problem."""

    def __init__(self, host: Host, source: Any = None) -> None:
        self.offers: dict[str, dict[str, tuple[str, ...]]] = {}
        self.answers: dict[str, dict[str, str]] = {}
        self.printed: dict[str, list[str]] = {}
        for hook, kind in _OFFERING.items():
            for reply in self._listen(hook, host.replies(hook)):
                names = tuple(reply.answer) if isinstance(reply.answer, Mapping) else ()
                self.offers.setdefault(reply.plugin, {})[kind] = names
        event = Progress(job="self-test", done=0, total=1)
        for _ in self._listen("sane_progress", host.replies("sane_progress", event=event)):
            pass
        for hook in _READING if source is not None else ():
            arguments = {"sane_build": {"classes": None}, "sane_cost": {"options": None}}
            replies = host.replies(hook, source=source, **arguments.get(hook, {}))
            for reply in self._listen(hook, replies):
                self.answers.setdefault(reply.plugin, {})[hook] = _told(reply)

    def _listen(self, hook: str, replies: Iterator[Reply]) -> Iterator[Reply]:
        reply: Reply | None
        while True:
            said, reply = "", None
            try:
                with quiet(hook):
                    reply = next(replies, None)
            except ContractError as error:
                said = str(error)
            if reply is None:
                return
            if said:
                self.printed.setdefault(reply.plugin, []).append(said)
            yield reply


def report_plugins(host: Host, replies: PluginReplies) -> list[PluginReport]:
    """Describe every plugin, those that did not load too, given what each replied."""
    loaded = [
        _report(host, x.name, replies, x.hooks, is_loaded=True)
        for x in host.plugins()
        if x.name in host.load_seconds  # the rest was registered by hand, such as progress bars
    ]
    known = {x.name for x in loaded}
    missing = dict.fromkeys(x.plugin for x in host.problems if x.plugin not in known)
    return loaded + [_report(host, name, replies, (), is_loaded=False) for name in missing]


def _report(
    host: Host, name: str, replies: PluginReplies, hooks: tuple[str, ...], *, is_loaded: bool
) -> PluginReport:
    distribution, version = host.origin(name)
    failures = [
        f"{x.place} is left out: {x.error}" if x.place else f"it is left out: {x.error}"
        for x in host.problems
        if x.plugin == name
    ]
    notes = [x for x in host.notes if x.plugin == name]
    return PluginReport(
        name=name,
        distribution=distribution,
        version=version,
        is_ours=host.is_own(name),
        is_loaded=is_loaded,
        seconds=host.load_seconds.get(name),
        hooks=hooks,
        offers=replies.offers.get(name, {}),
        answers=replies.answers.get(name, {}),
        problems=(
            *failures,
            *(x.text for x in notes if not x.is_slow),
            *replies.printed.get(name, ()),
        ),
        notes=tuple(x.text for x in notes if x.is_slow),
    )


def _told(reply: Reply) -> str:
    """Return what a plugin answered, in a few words."""
    if isinstance(reply.cause, SaneError):  # which plugins raise for what is theirs, and wrong
        is_others = reply.cause.is_unknown
        return f"passes: {reply.cause.found}" if is_others else f"refuses: {reply.error}"
    if reply.error is not None:
        return f"fails: {reply.error}"
    if reply.answer is None:
        return "passes"
    return f"answers with {kind_of(reply.answer)}, in {reply.seconds:.2f} s"
