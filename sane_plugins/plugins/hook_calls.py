"""The hooks of one manager, called so that no plugin stops another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any

from sane_plugins.errors import SaneError
from sane_plugins.plugins.answers import check_use
from sane_plugins.plugins.calls import ask, guard_wrapper, is_wrapper, pick_arguments
from sane_plugins.plugins.problems import (
    AnswerError,
    Problem,
    Record,
    describe_error,
    failure_of,
    to_plugin_error,
)
from sane_plugins.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Set

    from pluggy import HookImpl, PluginManager

_NOUNS = {
    "sane_encoders": "encoder",
    "sane_samplers": "sampler",
    "sane_transfers": "transfer",
    "sane_property_heads": "head",
    "sane_engines": "engine",
    "sane_prompts": "prompt",
    "sane_published_networks": "network",
    "sane_commands": "command",
}


@dataclass(frozen=True)
class Offer:
    """What a plugin offers under a name."""

    plugin: str
    value: Any


@dataclass(frozen=True)
class Reply:
    """What one plugin replies to a hook: an answer, or None and perhaps the error in its place."""

    plugin: str
    answer: Any
    error: str | None
    seconds: float
    cause: BaseException | None = field(default=None, compare=False, repr=False)


class HookCalls:
    """Calls of a manager's hooks: answers are checked, failures go into the record.

    `own` are the names of our own plugins in the manager, `plain_name` turns such a name into a plugin's.
    """

    def __init__(
        self, pm: PluginManager, record: Record, own: Set[str], plain_name: Callable[[str], str]
    ) -> None:
        self._pm, self._record, self._own, self._plain_name = pm, record, own, plain_name
        self._known_offers: dict[str, tuple[list[HookImpl], dict[str, Offer]]] = {}
        self._deaf: set[HookImpl] = set()  # observers that failed
        self._lock = Lock()

    def implementations(self, hook: str) -> list[HookImpl]:
        """Return the implementations of a hook that answer it, in calling order."""
        implementations = getattr(self._pm.hook, hook).get_hookimpls()
        return [x for x in reversed(implementations) if not is_wrapper(x)]

    def first(self, hook: str, arguments: Mapping[str, Any]) -> tuple[HookImpl | None, Any]:
        """Return the implementation that answered first, and its answer as wrapping plugins left it."""
        answered: list[HookImpl] = []
        failures: list[Problem] = []

        def call() -> Any:
            for implementation, answer in self._answers(hook, arguments, failures):
                answered.append(implementation)
                return answer
            return None

        implementations = getattr(self._pm.hook, hook).get_hookimpls()
        for wrapper in filter(is_wrapper, implementations):  # the innermost first
            call = self._wrapped(hook, wrapper, arguments, call)
        answer = call()
        if answer is None and failures:
            raise to_plugin_error(failures[0]) from failures[0].cause
        return next(iter(answered), None), answer

    def replies(self, hook: str, arguments: Mapping[str, Any]) -> Iterator[Reply]:
        """Ask each plugin on its own, whatever the others answer; wrapping plugins are left aside."""
        for implementation in self.implementations(hook):
            started, answer, cause = perf_counter(), None, None
            plugin = self._plain_name(implementation.plugin_name)
            try:
                answer, problem = self._ask(hook, implementation, arguments)
                cause = problem.cause if problem else None
            except SaneError as error:
                cause = error
            yield Reply(
                plugin=plugin,
                answer=answer,
                error=None if cause is None else describe_error(cause, plugin),
                seconds=perf_counter() - started,
                cause=cause,
            )

    def _wrapped(
        self, hook: str, wrapper: HookImpl, arguments: Mapping[str, Any], call: Callable[[], Any]
    ) -> Callable[[], Any]:
        """Return a call within a plugin's wrapper; one that fails leaves the answer as it was."""
        guarded = guard_wrapper(
            self._record,
            hook,
            self._plain_name(wrapper.plugin_name),
            _unguarded(wrapper),
            wrapper.hookwrapper,
        )

        def run() -> Any:
            running = guarded(**pick_arguments(wrapper, arguments))
            next(running)
            try:
                try:
                    answer = call()
                except BaseException as error:
                    running.throw(error)
                else:
                    running.send(answer)
            except StopIteration as stop:
                return stop.value
            raise AssertionError("a guarded wrapper yields once")

        return run

    def _answers(
        self, hook: str, arguments: Mapping[str, Any], failures: list[Problem] | None = None
    ) -> Iterator[tuple[HookImpl, Any]]:
        """Yield (implementation, answer) in calling order; one that fails does not stop the others."""
        for implementation in self.implementations(hook):
            answer, problem = self._ask(hook, implementation, arguments)
            if problem is not None and failures is not None:
                failures.append(problem)
            if answer is not None:
                yield implementation, answer

    def _ask(
        self, hook: str, implementation: HookImpl, arguments: Mapping[str, Any]
    ) -> tuple[Any, Problem | None]:
        key = implementation.plugin_name
        return ask(
            self._record,
            hook,
            self._plain_name(key),
            _unguarded(implementation),
            pick_arguments(implementation, arguments),
            is_own=key in self._own,  # the first of ours to be asked imports torch for all
        )

    def offers(self, hook: str) -> dict[str, Offer]:
        """Return what plugins offer by name: ours keep their names, then whoever was registered first.

        They are asked once, and again only when other plugins are registered.
        """
        implementations = self.implementations(hook)
        known = self._known_offers.get(hook)
        if known is not None and known[0] == implementations:
            return known[1]
        ranks = {name: i for i, (name, _) in enumerate(self._pm.list_name_plugin())}
        offers: dict[str, Offer] = {}
        for implementation in sorted(
            implementations,
            key=lambda x: (x.plugin_name not in self._own, ranks.get(x.plugin_name, len(ranks))),
        ):
            plugin = self._plain_name(implementation.plugin_name)
            for name, value in (self._ask(hook, implementation, {})[0] or {}).items():
                if name in offers:
                    error = AnswerError(f"{offers[name].plugin} offers one of that name")
                    self._record.leave_out(plugin, error, f"{_NOUNS[hook]} '{name}'")
                else:
                    offers[name] = Offer(plugin, value)
        # Threads that asked at once must hold the same objects, or `blame` knows none.
        with self._lock:
            known = self._known_offers.get(hook)
            if known is None or known[0] != implementations:
                self._known_offers[hook] = known = implementations, offers
        return known[1]

    def observe(self, event: Progress) -> None:
        """Pass a step of a long job to every observer; one that raises is recorded and not asked again."""
        for implementation in self.implementations("sane_progress"):
            if implementation not in self._deaf:
                _, problem = self._ask("sane_progress", implementation, {"event": event})
                if problem is not None:
                    self._deaf.add(implementation)

    def use(
        self,
        hook: str,
        offered: Any,
        call: Callable[[], Any],
        *,
        device: str = "cpu",
        raised: tuple[type[Exception], ...] = (),
    ) -> tuple[Any, Problem | None]:
        """Use what a plugin offered; return the checked result and None, or None and the problem.

        `raised` are errors that are not the plugin's fault. `device` is that of the results.
        """
        result, failure = failure_of(lambda: check_use(hook, call(), device), *raised)
        return result, None if failure is None else self.blame(hook, offered, failure)

    def blame(self, hook: str, offered: Any, error: BaseException) -> Problem:
        """Record that what a plugin offered in answer to a hook failed when it was used."""
        for name, offer in self.offers(hook).items():
            if offer.value is offered:
                return self._record.leave_out(offer.plugin, error, f"{_NOUNS[hook]} '{name}'")
        return Problem("(unknown)", describe_error(error), error, _NOUNS[hook])


def _unguarded(implementation: HookImpl) -> Callable[..., Any]:
    """Return the plugin's own function: what an attached manager calls is guarded already."""
    function: Callable[..., Any] = getattr(
        implementation.function, "unguarded", implementation.function
    )
    return function
