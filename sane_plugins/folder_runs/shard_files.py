"""Shards as Parquet: rows of networks in the order of the manifest, written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sane_plugins.atomic_files import write_whole
from sane_plugins.errors import PluginError, first_line
from sane_plugins.folder_runs.manifest import ListedNetwork, Manifest, Shard

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "_manifest.parquet"  # readers of data sets pass over such names
PATTERN = "part-[0-9]*-*.parquet"


def require_pyarrow() -> None:
    """Raise `PluginError` where the library that writes Parquet is not there."""
    try:
        import_module("pyarrow.parquet")
    except ImportError as error:
        raise PluginError(
            "pyarrow",
            f"it cannot be imported ({first_line(error)})",
            "results are written as Parquet",
            "run pip install 'sane-plugins[parquet]'",
        ) from error


def shard_schema(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    """Return the schema of a shard: what a network is, the error if there is one, and the job's columns."""
    import pyarrow as pa

    common = {"path": pa.string(), "size": pa.int64(), "sha256": pa.string(), "error": pa.string()}
    return pa.schema({**common, **columns})


def shard_row(network: ListedNetwork, computed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a network with what was computed of its content."""
    return {
        **computed,
        "path": text(network.path),
        "size": network.content.size,
        "sha256": network.content.digest or None,
    }


def write_shard(
    folder: Path, shard: Shard, schema: pa.Schema, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write a shard. Raises `SourceError` where it cannot be written."""
    import pyarrow as pa

    _write(pa.Table.from_pylist([*rows], schema=schema), folder / shard.name)


def write_manifest(folder: Path, manifest: Manifest, shards: Sequence[Shard]) -> None:
    """Write which networks there are, what they hold, and in which shard the row of each is."""
    import pyarrow as pa

    names = (shard.name for shard in shards for _ in shard.networks)
    columns = {
        "path": [text(x.path) for x in manifest.networks],
        "size": [x.content.size for x in manifest.networks],
        "sha256": [x.content.digest or None for x in manifest.networks],
        "shard": [*names],
    }
    _write(pa.table(columns), folder / MANIFEST)


def text(name: str) -> str:
    """Return a path as Parquet can hold it: bytes that are no UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class StoredShard:
    """What is known of a shard that was written: its rows' paths, digests and errors."""

    path: Path
    paths: Sequence[str]
    digests: Sequence[str | None]
    errors: Sequence[str | None]

    @property
    def failed(self) -> Iterator[tuple[str, str]]:
        """Yield path and error of the rows that have one."""
        return ((x, error) for x, error in zip(self.paths, self.errors, strict=True) if error)


def read_stored(path: Path, schema: pa.Schema) -> StoredShard | None:
    """Return what a shard holds; None where it is broken, or not of this form."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if not pq.read_schema(path).equals(schema):
            return None
        table = pq.read_table(path, columns=["path", "sha256", "error"])
    except (pa.ArrowException, OSError):
        return None
    columns = (table[name].to_pylist() for name in ("path", "sha256", "error"))
    return StoredShard(path, *columns)


def stored_row(path: Path, number: int) -> dict[str, Any]:
    """Return a row of a shard."""
    table = _table(path, path.stat().st_mtime_ns)
    return dict(table.slice(number, 1).to_pylist()[0])


@lru_cache(maxsize=2)
def _table(path: Path, _modified: int) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(path)


def _write(table: pa.Table, path: Path) -> None:
    import pyarrow.parquet as pq

    write_whole(path, lambda partial: pq.write_table(table, partial, compression="zstd"))
