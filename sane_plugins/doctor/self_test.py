"""A self-test of seconds: a network is written, read, encoded, predicted, and what plugins offer is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any

from sane_plugins.host import Host
from sane_plugins.plugins import describe_error, failure_of
from sane_plugins.progress import Progress
from sane_plugins.testing import (
    ContractError,
    check_encoder,
    check_engine,
    check_head,
    check_sampler,
    example_graphs,
    is_same,
    require_declining,
)

if TYPE_CHECKING:
    from sane_plugins.weights import WeightGraph

SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One thing that was tried: of which plugin, the error if it failed, and how long it took.

    `error` is None where it went well; `is_skipped` where the time was over before.
    """

    what: str
    plugin: str
    error: str | None = None
    seconds: float = 0.0
    is_skipped: bool = False


def run_self_test(host: Host, seconds: float = SECONDS) -> list[Trial]:
    """Try the package, and then what others' plugins offer until the time is over; nothing is left behind.

    A trial that has begun is ended. What is tried of plugins is the contract of `sane_plugins.testing`.
    """
    trials: list[Trial] = []
    with TemporaryDirectory(prefix="sane-doctor-") as folder:
        every = [*_own_trials(host, Path(folder)), *_plugin_trials(host, Path(folder))]
        started = perf_counter()  # torch is loaded by now
        for i, (what, plugin, attempt) in enumerate(every):
            host.report(Progress(job="self-test", done=i, total=len(every), note=what))
            begun = perf_counter()
            if plugin and begun - started > seconds:
                trials.append(Trial(what=what, plugin=plugin, is_skipped=True))
                continue
            _, failure = failure_of(attempt)
            error = None if failure is None else _sentence(failure)
            taken = perf_counter() - begun
            trials.append(Trial(what=what, plugin=plugin, error=error, seconds=taken))
    return trials


def _sentence(failure: BaseException) -> str:
    is_plain = isinstance(failure, ContractError)
    return str(failure) if is_plain else describe_error(failure)


_Attempt = tuple[str, str, Callable[[], object]]


def _own_trials(host: Host, folder: Path) -> Iterator[_Attempt]:
    for i, graph in enumerate(example_graphs()):
        attempt = partial(_round_trip, host, graph, folder / f"{i}.safetensors")
        yield f"write and read a {graph.source}", "", attempt
    path = folder / "0.safetensors"  # written by the first
    yield "encode the first", "", partial(host.encode, path)
    yield "predict its properties", "", partial(host.predict, path)


def _round_trip(host: Host, graph: WeightGraph, path: Path) -> None:
    opened = host.open(host.save(graph, path))
    if not is_same(
        dict(sorted(opened.state_dict().items())), dict(sorted(graph.state_dict().items()))
    ):
        raise ContractError("it is not read as it was written")


def _plugin_trials(host: Host, folder: Path) -> Iterator[_Attempt]:
    """Yield what to try of others' plugins, each on its own."""
    for info in host.plugins():
        if host.is_own(info.name) or not {"sane_open", "sane_save"} & set(info.hooks):
            continue
        yield (
            "decline what is not its own",
            info.name,
            partial(require_declining, host, info.name, folder),
        )
    encoders = host.encoders()
    checks: dict[str, tuple[str, Callable[[Any], object]]] = {
        "sane_samplers": ("sampler", check_sampler),
        "sane_encoders": ("encoder", check_encoder),
        "sane_property_heads": ("head", lambda head: check_head(head, encoders)),
        "sane_engines": ("engine", check_engine),
    }
    for hook, (noun, check) in checks.items():
        for reply in host.replies(hook):
            for name, value in (reply.answer or {}).items():
                is_bound_later = hook == "sane_samplers" and hasattr(value, "bound")
                if not host.is_own(reply.plugin) and not is_bound_later:
                    yield f"{noun} '{name}'", reply.plugin, partial(check, value)
