"""Encoding of many networks, in this process or by the workers of an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sane_plugins.errors import SaneError, SourceError, UsageError
from sane_plugins.host.host import Host
from sane_plugins.host.unknown_sources import source_name
from sane_plugins.progress import silent

if TYPE_CHECKING:
    from sane_plugins.engines import Lost, Work
    from sane_plugins.features import EncodeOptions, Encoding


def encode_each(
    host: Host, sources: Sequence[Any], options: EncodeOptions | None, engine: str, workers: int
) -> Iterator[Encoding | SaneError]:
    """Yield the encoding of each network, or its error, in their order."""
    from sane_plugins.engines import Lost, run_in_order

    if workers < 1:
        yield from map(partial(_encode_or_error, host, options), sources)
        return
    outcomes = run_in_order(host.engine(engine), _StartEncoding(options), sources, workers)
    for source, outcome in zip(sources, outcomes, strict=True):
        yield _lost(source, outcome) if isinstance(outcome, Lost) else outcome


@dataclass(frozen=True)
class _StartEncoding:
    """How a worker of an engine begins to encode."""

    options: EncodeOptions | None

    def __call__(self) -> Work:
        from sane_plugins.runtime import set_threads

        set_threads(1)  # workers share the processors
        options = None if self.options is None else replace(self.options, report=silent)
        return partial(_encode_or_error, Host.installed(), options)


def _encode_or_error(
    host: Host, options: EncodeOptions | None, source: Any
) -> Encoding | SaneError:
    from sane_plugins.engines import is_out_of_memory

    try:
        return host.encode(source, options)
    except UsageError:
        raise
    except SaneError as error:
        if is_out_of_memory(error):
            raise MemoryError from error
        return error


def _lost(source: Any, outcome: Lost) -> SourceError:
    return SourceError(
        source_name(source),
        "it takes more memory than there is"
        if outcome.out_of_memory
        else "its worker ended every time, at last alone",
        "a network that can be encoded here is needed",
        "leave it out, or take a larger machine",
    )
