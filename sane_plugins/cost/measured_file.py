"""Read what earlier runs measured, from the JSON that `sane-plugins cost --latency --json` prints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from sane_plugins.arguments import from_plain
from sane_plugins.cost.network_cost import NetworkCost
from sane_plugins.errors import SaneError, UsageError
from sane_plugins.formats import require_file

_MAX_BYTES = 2**26


def read_measured(path: Path) -> dict[str, NetworkCost]:
    """Return the networks of a file whose latency was measured, by their names.

    Raises `UsageError` where it is not such a file. Anyone may have written it: it is read as data.
    """
    require_file(path)
    if (size := path.stat().st_size) > _MAX_BYTES:
        raise _wrong(path, f"it has {size:,} bytes")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _wrong(path, f"it is no JSON ({type(error).__name__})") from error
    if not isinstance(stored, dict):
        raise _wrong(path, "it holds no networks by name")
    found = {}
    for name, row in stored.items():
        if isinstance(row, dict) and row.get("latency") is not None:
            found[name] = _cost(path, name, row)
    return found


def _cost(path: Path, name: str, row: Mapping[str, Any]) -> NetworkCost:
    hints = get_type_hints(NetworkCost)
    known = {x.name for x in fields(NetworkCost)}
    plain = {key: value for key, value in row.items() if key in known}
    try:
        cost = NetworkCost(
            **{key: from_plain(hints[key], x, f"{path}, {name}") for key, x in plain.items()}
        )
    except SaneError as error:
        raise _wrong(path, f"{error.place}: {error.found}") from error
    except TypeError as error:
        raise _wrong(path, f"'{name}' lacks something ({error})") from error
    latency = cost.latency
    if latency is None or latency.seconds <= 0 or min(cost.macs, cost.parameters, cost.layers) < 0:
        raise _wrong(path, f"'{name}' has numbers that are not positive")
    return cost


def _wrong(path: Path, found: str) -> UsageError:
    return UsageError(
        f"--measured {path}",
        found,
        "it is what 'sane-plugins cost SOURCE... --latency --json' prints",
        "write one with that command",
    )
