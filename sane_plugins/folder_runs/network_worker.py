"""What a worker does: it opens one network after another, and answers with its row or why there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from sane_plugins.architectures import NO_TRUST, Trust
from sane_plugins.engines import is_out_of_memory
from sane_plugins.errors import SaneError, SourceError, first_line
from sane_plugins.folder_runs.content import error_text, stamp
from sane_plugins.folder_runs.jobs import FolderJob
from sane_plugins.folder_runs.manifest import ListedNetwork
from sane_plugins.formats import files_read
from sane_plugins.host import Host
from sane_plugins.runtime import set_threads
from sane_plugins.weights import WeightGraph
from sane_plugins.zoo import Zoo

OpenFile = Callable[[str], WeightGraph]


@dataclass(frozen=True, kw_only=True)
class StartWorker:
    """How a worker begins; `make_opener` returns what opens files with the plugins of the worker's host."""

    job: FolderJob
    folder: Path
    make_opener: Callable[[Host], OpenFile] | None = None
    trust: Trust = field(default=NO_TRUST)

    def __call__(self) -> NetworkWorker:
        """Load the plugins that are installed where the worker is."""
        set_threads(1)  # workers share the processors, and a sum must not depend on how it is split
        host = Host.installed()
        open_file = host.open if self.make_opener is None else self.make_opener(host)
        return NetworkWorker(self, host, open_file)


@dataclass(frozen=True)
class NetworkWorker:
    """Computes the row of a network; raises `MemoryError` where there was not enough memory."""

    settings: StartWorker
    host: Host
    open_file: OpenFile

    def __call__(self, network: ListedNetwork) -> dict[str, Any]:
        """Return the row of a network, or its error."""
        path = self.settings.folder / network.path
        try:
            return self._row(network, path)
        except MemoryError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise MemoryError from None
            return {"error": error_row_text(error, path)}

    def _row(self, network: ListedNetwork, path: Path) -> dict[str, Any]:
        if network.zoo is not None:
            zoo = _zoo(self.settings.folder / network.zoo, self.settings.trust)
            entry = next(x for x in zoo.entries if x.key == network.key)
            return self.settings.job.row(self.host, zoo.graph(entry))
        graph = self.open_file(str(path))
        row = self.settings.job.row(self.host, graph)
        files = [path] if network.content.is_single else [*dict.fromkeys(files_read(graph))]
        if stamp(files) != (network.content.modified, network.content.size):
            raise SourceError(
                path,
                "it changed while it was read",
                "what is read must stay as it is",
                "run again when it is finished",
            )
        return row


class NetworkRows:
    """Computes rows of single files in this process, for pipelines that spread the work themselves."""

    def __init__(self, job: FolderJob, host: Host | None = None) -> None:
        self._job, self._host = job, host or Host.installed()
        self.columns = tuple(job.columns(self._host))

    def __call__(self, path: str | Path) -> dict[str, Any]:
        """Return the job's columns for a network, or its error."""
        try:
            return self._job.row(self._host, self._host.open(str(path)))
        except Exception as error:
            return {"error": error_row_text(error, Path(path))}


def error_row_text(error: Exception, path: Path) -> str:
    """Return what a row tells of an error."""
    if isinstance(error, SaneError):
        return error_text(error, path)
    return f"it failed with {type(error).__name__} ({first_line(error)})"


@lru_cache(maxsize=2)
def _zoo(folder: Path, trust: Trust) -> Zoo:
    return Zoo.open(folder, trust)
