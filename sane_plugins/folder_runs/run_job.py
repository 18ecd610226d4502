"""A job over all networks of a folder: what is missing is computed, and full shards are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from sane_plugins import __version__
from sane_plugins.architectures import NO_TRUST, Trust
from sane_plugins.arguments import require_field_types
from sane_plugins.atomic_files import claimed
from sane_plugins.engines import TRIES, Done, Outcome, run_with_retries
from sane_plugins.errors import SaneError, UsageError
from sane_plugins.folder_runs.jobs import FolderJob
from sane_plugins.folder_runs.manifest import (
    ListedNetwork,
    Manifest,
    Part,
    Shard,
    plan_shards,
    read_manifest,
)
from sane_plugins.folder_runs.network_worker import OpenFile, StartWorker
from sane_plugins.folder_runs.run_folder import (
    KeptRows,
    find_stored,
    prepare_folder,
    remove_others,
)
from sane_plugins.folder_runs.shard_files import (
    require_pyarrow,
    shard_row,
    shard_schema,
    write_manifest,
    write_shard,
)
from sane_plugins.host import Host
from sane_plugins.plugins import to_plugin_error
from sane_plugins.progress import Progress

_EXAMPLES = 5
_LOST = f"its worker ended {TRIES} times before it answered, the last time alone on its machine"
_TOO_LARGE = "it takes more memory than the machine has"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a folder is worked through; results depend on none of it but `part`.

    A shard takes at most so many rows, and networks of so many bytes together unless it is one.
    `retry_errors` does networks again whose rows have errors. `trust` and `make_opener` (given a host,
    returns what opens a file) say how networks are opened; workers must be able to import them.
    """

    engine: str = "local"
    workers: int = 1
    part: Part = field(default_factory=Part)
    retry_errors: bool = False
    rows_per_shard: int = 1000
    bytes_per_shard: int = 2**30
    trust: Trust = NO_TRUST
    make_opener: Callable[[Host], OpenFile] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        require_field_types(self)
        if min(self.workers, self.rows_per_shard, self.bytes_per_shard) < 1:
            raise UsageError(
                "RunOptions",
                "workers, rows_per_shard or bytes_per_shard is below 1",
                "at least 1 is needed",
                "leave it out",
            )


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run did: networks in all, contents that were computed now, rows with an error, seconds.

    `examples` are the paths and errors of some.
    """

    networks: int
    bytes: int
    others: int
    computed: int
    errors: int
    shards: int
    seconds: float
    examples: tuple[tuple[str, str], ...] = ()


def run_job(
    host: Host, folder: str | Path, output: str | Path, job: FolderJob, options: RunOptions
) -> RunResult:
    """Compute a job for all networks below a folder; `output` receives its rows as Parquet shards.

    Where it holds rows of the same content from an earlier start with the same settings, these are used
    again. Raises `UsageError` for another run's folder, `SourceError` where there is no network.
    """
    started = monotonic()
    require_pyarrow()
    folder, output = Path(folder), Path(output)
    engine = host.engine(options.engine)
    about = {
        "job": job.name,
        "settings": job.settings(host),
        "part": f"{options.part.number}/{options.part.count}",
        "version": __version__,
    }
    schema = shard_schema(job.columns(host))
    opener = host.open if options.make_opener is None else options.make_opener(host)
    if not folder.is_dir():
        raise UsageError(folder, "it is no folder", "a folder of networks is needed", "name one")
    prepare_folder(output, folder, about)
    with claimed(output):
        manifest = read_manifest(
            folder,
            opener,
            host.report,
            without=output,
            part=options.part,
            threads=options.workers,
        )
        shards = plan_shards(manifest, options.rows_per_shard, options.bytes_per_shard)
        write_manifest(output, manifest, shards)
        stored = find_stored(output, shards, schema, retry_errors=options.retry_errors)
        bench = _Workbench(output, schema, shards, stored)
        start = StartWorker(
            job=job,
            folder=folder.absolute(),
            make_opener=options.make_opener,
            trust=options.trust,
        )
        outcomes = run_with_retries(engine, start, bench.tasks, options.workers)
        try:
            with closing(outcomes):
                bench.take(outcomes, job.name, host.report)
        except (SaneError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise to_plugin_error(host.blame("sane_engines", engine, error)) from error
        remove_others(output, shards)
    return bench.result(manifest, monotonic() - started)


class _Workbench:
    """The shards that are being filled: what each still waits for, and the rows that it has."""

    def __init__(
        self, folder: Path, schema: Any, shards: Sequence[Shard], stored: KeptRows
    ) -> None:
        self._folder, self._schema, self._stored = folder, schema, stored
        self._shards = shards
        self._rows: dict[str, dict[str, dict[str, Any]]] = {}  # of open shards, by digest
        self._waiting: dict[str, list[Shard]] = {}
        self._errors = 0
        self._examples: list[tuple[str, str]] = []
        self.tasks: list[ListedNetwork] = []
        for kept in stored.shards.values():
            self._note_errors(kept.failed)
        for shard in sorted(shards, key=_largest, reverse=True):
            if shard.name not in stored.shards:
                self._open(shard)

    def _open(self, shard: Shard) -> None:
        """Ask for what a shard lacks, its largest network first: the last ones end together."""
        missing = {
            x.content.digest: x
            for x in reversed(shard.networks)
            if not x.content.error and x.content.digest not in self._stored.rows
        }
        for network in sorted(missing.values(), key=lambda x: -x.content.size):
            if network.content.digest not in self._waiting:
                self.tasks.append(network)
            self._waiting.setdefault(network.content.digest, []).append(shard)
        self._rows[shard.name] = {}
        if not missing:
            self._write(shard)

    def take(
        self, outcomes: Iterator[Outcome], job: str, report: Callable[[Progress], None]
    ) -> None:
        """Take results until all are there; write each shard when it is full."""
        total = len(self.tasks)
        report(Progress(job=job, done=0, total=max(total, 1)))
        for done, outcome in enumerate(outcomes, 1):
            network = self.tasks[outcome.index]
            digest = network.content.digest
            row = outcome.result if isinstance(outcome, Done) else _lost_row(outcome.out_of_memory)
            for shard in self._waiting.pop(digest):
                self._rows[shard.name][digest] = row
                if all(x.content.digest not in self._waiting for x in shard.networks):
                    self._write(shard)
            report(Progress(job=job, done=done, total=total, note=network.path))

    def _write(self, shard: Shard) -> None:
        rows = [shard_row(x, self._computed(shard, x)) for x in shard.networks]
        write_shard(self._folder, shard, self._schema, rows)
        del self._rows[shard.name]
        self._note_errors((x["path"], x["error"]) for x in rows if x.get("error"))

    def _computed(self, shard: Shard, network: ListedNetwork) -> Mapping[str, Any]:
        if network.content.error:
            return {"error": network.content.error}
        own = self._rows[shard.name].get(network.content.digest)
        return own or self._stored.row(network.content.digest) or {}

    def _note_errors(self, failed: Any) -> None:
        for example in failed:
            self._errors += 1
            if len(self._examples) < _EXAMPLES:
                self._examples.append(example)

    def result(self, manifest: Manifest, seconds: float) -> RunResult:
        return RunResult(
            networks=len(manifest.networks),
            bytes=manifest.size,
            others=manifest.others,
            computed=len(self.tasks),
            errors=self._errors,
            shards=len(self._shards),
            seconds=seconds,
            examples=tuple(self._examples),
        )


def _largest(shard: Shard) -> int:
    return max(x.content.size for x in shard.networks)


def _lost_row(out_of_memory: bool) -> dict[str, Any]:
    return {"error": _TOO_LARGE if out_of_memory else _LOST}
