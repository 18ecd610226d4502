"""The folder of a run: what was asked for, and which rows are there from an earlier start."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sane_plugins.atomic_files import naming, require_output_folder, write_whole
from sane_plugins.errors import UsageError
from sane_plugins.folder_runs.manifest import Shard
from sane_plugins.folder_runs.shard_files import PATTERN, StoredShard, read_stored, stored_row

if TYPE_CHECKING:
    import pyarrow as pa

ABOUT = "_run.json"


def prepare_folder(folder: Path, source: Path, about: Mapping[str, Any]) -> None:
    """Make the folder of a run, or go on in one that was asked for the same.

    Raises `UsageError` where it holds anything else: nothing is overwritten.
    """
    require_output_folder(folder, [source])
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ABOUT
        if path.is_file():
            _require_same(folder, _read_about(path), about)
            return
        if any(not x.name.startswith(".") for x in folder.iterdir()):
            raise UsageError(
                folder,
                "it holds files that no run has written",
                "a new folder, or that of an earlier run, is needed",
                "name another folder",
            )
        write_whole(path, lambda partial: partial.write_text(json.dumps(about, indent=2) + "\n"))


def _read_about(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None


def _require_same(folder: Path, stored: Any, about: Mapping[str, Any]) -> None:
    found = stored if isinstance(stored, dict) else {}
    asked = json.loads(json.dumps(about))
    if other := [key for key in asked if found.get(key) != asked[key]]:
        raise UsageError(
            folder,
            f"it is of a run with another {' and '.join(other)}",
            "a run goes on only as it was begun",
            "name another folder",
        )


@dataclass(frozen=True)
class KeptRows:
    """What an earlier start has left: the shards that are whole, and where the row of each content is."""

    shards: Mapping[str, StoredShard]
    rows: Mapping[str, tuple[Path, int]] = field(repr=False)

    def row(self, digest: str) -> dict[str, Any] | None:
        """Return what was computed of a content."""
        place = self.rows.get(digest)
        return None if place is None else stored_row(*place)


def find_stored(
    folder: Path, shards: Sequence[Shard], schema: pa.Schema, *, retry_errors: bool
) -> KeptRows:
    """Return what can be used again; with `retry_errors` no row that has an error."""
    wanted = {shard.name for shard in shards}
    whole: dict[str, StoredShard] = {}
    rows: dict[str, tuple[Path, int]] = {}
    for path in sorted(folder.glob(PATTERN)):
        stored = read_stored(path, schema)
        if stored is None:
            continue
        if path.name in wanted and not (retry_errors and any(stored.errors)):
            whole[path.name] = stored
        for i, (digest, error) in enumerate(zip(stored.digests, stored.errors, strict=True)):
            if digest and not (retry_errors and error):
                rows.setdefault(digest, (path, i))
    return KeptRows(whole, rows)


def remove_others(folder: Path, shards: Sequence[Shard]) -> None:
    """Remove shards of networks that have changed, or are gone."""
    wanted = {shard.name for shard in shards}
    for path in folder.glob(PATTERN):
        if path.name not in wanted:
            with naming(path):
                path.unlink()
