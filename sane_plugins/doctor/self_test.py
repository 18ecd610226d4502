"""A self-test of seconds: a network is written, read, encoded, predicted, and what plugins offer is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any

from sane_plugins.doctor.load_alone import require_light_load
from sane_plugins.errors import SaneError
from sane_plugins.host import Host
from sane_plugins.plugins import describe_error, failure_of
from sane_plugins.progress import Progress
from sane_plugins.runtime import threads
from sane_plugins.testing import (
    ContractError,
    check_encoder,
    check_engine,
    check_head,
    check_sampler,
    example_graphs,
    is_same,
    quiet,
    require_declining,
)

if TYPE_CHECKING:
    from sane_plugins.weights import WeightGraph

SECONDS = 30.0  # for what others' plugins offer


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One thing that was tried: of which plugin, the error if it failed, and how long it took.

    `plugin` is empty for the package's own trials, unless another's plugin made one fail. `error` is None
    where it went well; `is_skipped` where the time was over before.
    """

    what: str
    plugin: str
    error: str | None = None
    seconds: float = 0.0
    is_skipped: bool = False


def run_self_test(host: Host, seconds: float = SECONDS) -> list[Trial]:
    """Try the package, and then what others' plugins offer until their `seconds` are over.

    Nothing is left behind. A trial that has begun is ended. What is tried of plugins is the contract of
    `sane_plugins.testing`. On one thread: beside others' work, small networks wait longer for more.
    """
    trials: list[Trial] = []
    with TemporaryDirectory(prefix="sane-doctor-") as folder, threads(1):
        own = [*_own_trials(host, Path(folder))]
        others = [*_plugin_trials(host, Path(folder))]
        total = len(own) + len(others)
        for what, attempt in own:
            host.report(Progress(job="self-test", done=len(trials), total=total, note=what))
            trials.append(_try_own(host, what, attempt, Path(folder)))
        started = perf_counter()
        for what, plugin, attempt in others:
            host.report(Progress(job="self-test", done=len(trials), total=total, note=what))
            if perf_counter() - started >= seconds:
                trials.append(Trial(what=what, plugin=plugin, is_skipped=True))
            else:
                trials.append(_try(what, plugin, attempt))
    return trials


def list_untried(host: Host) -> list[tuple[str, str]]:
    """Return (what, plugin) of what others' plugins offer and nothing here can try."""
    found = []
    for hook, noun in {"sane_transfers": "transfer", "sane_prompts": "prompt network"}.items():
        found += [(f"{noun} '{name}'", plugin) for plugin, name, _ in _offered(host, hook)]
    for plugin, name, value in _offered(host, "sane_samplers"):
        if _is_bound_later(value):
            found.append((f"sampler '{name}'", plugin))
    return found


def _try(what: str, plugin: str, attempt: Callable[[], object]) -> Trial:
    begun = perf_counter()
    _, failure = failure_of(attempt)
    error = None if failure is None else _sentence(failure, plugin)
    return Trial(what=what, plugin=plugin, error=error, seconds=perf_counter() - begun)


def _try_own(host: Host, what: str, attempt: Callable[[], object], folder: Path) -> Trial:
    """Try the package; where another's plugin makes that fail, it is named."""
    begun = perf_counter()
    _, failure = failure_of(attempt)
    seconds = perf_counter() - begun
    if failure is None:
        return Trial(what=what, plugin="", seconds=seconds)
    plugin = getattr(failure, "plugin", "") or _other_reader(host, folder / "0.safetensors")
    error = _sentence(failure, plugin)
    if plugin:
        error = (
            f"it makes this fail ({error.rstrip('.')}): it must return None for what is not its own,"
            " and answer for the rest as the kit asks"
        )
    return Trial(what=what, plugin=plugin, error=error, seconds=seconds)


def _other_reader(host: Host, path: Path) -> str:
    """Return the plugin of others that takes one of our files for its own; empty where none does."""
    for reply in host.replies("sane_open", source=path):
        if reply.answer is not None or isinstance(reply.cause, SaneError):
            return "" if host.is_own(reply.plugin) else reply.plugin
    return ""


def _sentence(failure: BaseException, plugin: str) -> str:
    is_plain = isinstance(failure, ContractError)
    return str(failure) if is_plain else describe_error(failure, plugin)


def _own_trials(host: Host, folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    for i, graph in enumerate(example_graphs()):
        path = folder / f"{i}.safetensors"
        yield f"write and read a {graph.source}", partial(_round_trip, host, graph, path)
    path = folder / "0.safetensors"  # written by the first
    yield "encode the first", partial(host.encode, path)
    yield "predict its properties", partial(host.predict, path)


def _round_trip(host: Host, graph: WeightGraph, path: Path) -> None:
    opened = host.open(host.save(graph, path))
    if not is_same(
        dict(sorted(opened.state_dict().items())), dict(sorted(graph.state_dict().items()))
    ):
        raise ContractError("it is not read as it was written")


def _plugin_trials(host: Host, folder: Path) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """Yield what to try of others' plugins, each on its own."""
    infos = [x for x in host.plugins() if not host.is_own(x.name)]
    for info in infos:
        if info.name in host.load_seconds:
            load = partial(require_light_load, info.name, info.distribution)
            yield "load it in a process of its own", info.name, load
    for info in infos:
        if {"sane_open", "sane_save"} & set(info.hooks):
            yield (
                "decline what is not its own",
                info.name,
                partial(_decline, host, info.name, folder),
            )
    encoders = host.encoders()
    checks: dict[str, tuple[str, Callable[[Any], object]]] = {
        "sane_samplers": ("sampler", check_sampler),
        "sane_encoders": ("encoder", check_encoder),
        "sane_property_heads": ("head", lambda head: check_head(head, encoders)),
        "sane_engines": ("engine", check_engine),
    }
    for hook, (noun, check) in checks.items():
        for plugin, name, value in _offered(host, hook):
            if not _is_bound_later(value):
                yield f"{noun} '{name}'", plugin, partial(check, value)


def _decline(host: Host, name: str, folder: Path) -> None:
    with quiet("it"):
        require_declining(host, name, folder)


def _offered(host: Host, hook: str) -> Iterator[tuple[str, str, Any]]:
    """Yield (plugin, name, value) of what others' plugins offer; what it prints was told before."""
    with redirect_stdout(StringIO()):
        replies = [x for x in host.replies(hook) if not host.is_own(x.plugin)]
    for reply in replies:
        for name, value in (reply.answer or {}).items():
            yield reply.plugin, name, value


def _is_bound_later(value: Any) -> bool:
    return callable(getattr(value, "bound", None))
