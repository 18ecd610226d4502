"""Table of properties (CSV or JSON Lines), joined to a zoo's entries by file or network."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sane_plugins.errors import ZooError
from sane_plugins.zoo.index import Entry, Property

_NAMES = ("file", "network", "checkpoint")


def read_table(path: str | Path) -> list[dict[str, Any]]:
    """Read a table with one row per file or network: `.csv` with a header, or `.jsonl`.

    Raises `ZooError` where it is neither, or has no column `file` or `network`.
    """
    path = Path(path)
    try:
        rows = _json_lines(path) if path.suffix == ".jsonl" else _csv(path)
    except (OSError, ValueError, csv.Error) as error:
        raise ZooError(
            path,
            f"it cannot be read as a table ({error})",
            "a .csv with a header, or a .jsonl, is needed",
            "save the table in one of these forms",
        ) from error
    if not rows or not all({"file", "network"} & row.keys() for row in rows):
        raise ZooError(
            path,
            "a row has no 'file' and no 'network'",
            "one of them says which network a row is about",
            "add a column 'file' or 'network'",
        )
    return rows


def join_table(
    entries: Sequence[Entry], rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, dict[str, Property]], list[str]]:
    """Return the properties of each entry by its key, and the rows that fit none, as they name it.

    `file` is an entry's source or the end of it, `network` its network or the end of it; a `checkpoint`
    beside it names one of the network's checkpoints, else all are meant.
    """
    found: dict[str, dict[str, Property]] = {}
    unmatched = []
    by_suffix = _by_suffix(entries)
    for row in rows:
        matched = [entry for entry in _matches(by_suffix, row) if _is_checkpoint(entry, row)]
        if not matched:
            unmatched.append(str(row.get("file") or row.get("network")))
        values = {key: _value(value) for key, value in row.items() if key not in _NAMES}
        known = {key: value for key, value in values.items() if value is not None}
        for entry in matched:
            found.setdefault(entry.key, {}).update(known)
    return found, unmatched


def _by_suffix(entries: Sequence[Entry]) -> dict[tuple[str, str], list[Entry]]:
    """Return the entries by each end of their source and of their network."""
    found: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        for kind, name in (("file", entry.source), ("network", entry.network)):
            for suffix in _suffixes(name):
                found.setdefault((kind, suffix), []).append(entry)
    return found


def _suffixes(name: str) -> Iterator[str]:
    parts = name.split("/")
    yield from ("/".join(parts[i:]) for i in range(len(parts)))


def _matches(
    by_suffix: Mapping[tuple[str, str], list[Entry]], row: Mapping[str, Any]
) -> list[Entry]:
    """Return the entries that a row names; none where the end of a name fits several."""
    kind = "file" if row.get("file") else "network"
    name = str(row.get(kind))
    matches = by_suffix.get((kind, name), [])
    whole = [e for e in matches if name in ({e.source} if kind == "file" else {e.network})]
    several = {entry.source if kind == "file" else entry.network for entry in matches}
    return whole or (matches if len(several) == 1 else [])


def _is_checkpoint(entry: Entry, row: Mapping[str, Any]) -> bool:
    return row.get("checkpoint") in (None, "") or str(row["checkpoint"]) == entry.checkpoint


def _csv(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, strict=True))
    if any(None in row for row in rows):
        raise ValueError("a row is longer than the header")
    return rows


def _json_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("each line is one JSON object")
    return rows


def _value(value: Any) -> Property | None:
    """Return a number or a truth value where a text spells one; none for an empty cell."""
    if not isinstance(value, str):
        return value if isinstance(value, float | int) else None if value is None else str(value)
    text = value.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text or None
