"""Property tables (CSV or JSON Lines) and their join to a zoo's entries by file or network."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sane_plugins.errors import ZooError
from sane_plugins.zoo.index import Entry, Property

_KEY_COLUMNS = ("file", "network", "checkpoint")


def read_table(path: str | Path) -> list[dict[str, Any]]:
    """Read a table with one row per file or network: `.csv` with a header, or `.jsonl`.

    Raises `ZooError` if it is neither, or has no column `file` or `network`.
    """
    path = Path(path)
    try:
        rows = _read_json_lines(path) if path.suffix == ".jsonl" else _read_csv(path)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
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
    """Return properties by entry key, and the file or network names of unmatched rows.

    `file` matches an entry's source or a suffix of it, `network` its network or a suffix of it. An optional
    `checkpoint` selects one of the network's checkpoints; without it a row applies to all of them.
    """
    properties: dict[str, dict[str, Property]] = {}
    unmatched = []
    by_suffix = _by_suffix(entries)
    for row in rows:
        matched = [
            entry for entry in _matching_entries(by_suffix, row) if _matches_checkpoint(entry, row)
        ]
        if not matched:
            unmatched.append(str(row.get("file") or row.get("network")))
        values = {key: _parse_value(value) for key, value in row.items() if key not in _KEY_COLUMNS}
        known = {key: value for key, value in values.items() if value is not None}
        for entry in matched:
            properties.setdefault(entry.key, {}).update(known)
    return properties, unmatched


def _by_suffix(entries: Sequence[Entry]) -> dict[tuple[str, str], list[Entry]]:
    """Index entries by every path suffix of their source and their network."""
    index: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        for kind, name in (("file", entry.source), ("network", entry.network)):
            for suffix in _suffixes(name):
                index.setdefault((kind, suffix), []).append(entry)
    return index


def _suffixes(name: str) -> Iterator[str]:
    parts = name.split("/")
    yield from ("/".join(parts[i:]) for i in range(len(parts)))


def _matching_entries(
    by_suffix: Mapping[tuple[str, str], list[Entry]], row: Mapping[str, Any]
) -> list[Entry]:
    """Return the entries a row refers to; none if a suffix is ambiguous."""
    kind = "file" if row.get("file") else "network"
    name = str(row.get(kind))
    matches = by_suffix.get((kind, name), [])
    exact = [e for e in matches if name in ({e.source} if kind == "file" else {e.network})]
    distinct_names = {entry.source if kind == "file" else entry.network for entry in matches}
    return exact or (matches if len(distinct_names) == 1 else [])


def _matches_checkpoint(entry: Entry, row: Mapping[str, Any]) -> bool:
    return row.get("checkpoint") in (None, "") or str(row["checkpoint"]) == entry.checkpoint


def _read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, strict=True))
    if any(None in row for row in rows):
        raise ValueError("a row is longer than the header")
    return rows


def _read_json_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("each line is one JSON object")
    return rows


def _parse_value(value: Any) -> Property | None:
    """Parse a cell as bool, number or text; None if it is empty."""
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
