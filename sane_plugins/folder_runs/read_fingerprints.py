"""Fingerprints of a run, as the comparisons of networks take them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sane_plugins.errors import SourceError
from sane_plugins.fingerprints import PackedFingerprints, from_arrays
from sane_plugins.folder_runs.shard_files import PATTERN, require_pyarrow

_ARRAYS = ("numbers", "channels", "quantiles", "moments", "embeddings")


def read_fingerprints(folder: str | Path) -> list[PackedFingerprints]:
    """Read what `run fingerprint` wrote to a folder; networks with an error are left out.

    Raises `SourceError` where it is no such folder, or broken.
    """
    require_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    forms: dict[str, list[dict[str, Any]]] = {}
    try:
        for path in sorted(Path(folder).glob(PATTERN)):
            for row in pq.read_table(path, columns=["path", "tensors", *_ARRAYS]).to_pylist():
                if row["tensors"] is not None:
                    forms.setdefault(row["tensors"], []).append(row)
        description = [
            {"tensors": json.loads(form), "names": [x["path"] for x in rows]}
            for form, rows in forms.items()
        ]
        arrays = {
            f"{i}.{name}": _stack(rows, name, len(described["tensors"]))
            for i, (described, rows) in enumerate(zip(description, forms.values(), strict=True))
            for name in _ARRAYS
        }
        told = [{**x, "sources": x["names"]} for x in description]
        found = from_arrays({"forms": told}, arrays)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            folder,
            f"its shards hold no fingerprints ({str(error).partition(chr(10))[0][:100]})",
            "what 'sane-plugins run fingerprint' wrote is needed",
            "name its folder",
        ) from error
    if not found:
        raise SourceError(
            folder,
            "it holds no fingerprints",
            "what 'sane-plugins run fingerprint' wrote is needed",
            "name its folder",
        )
    return found


def _stack(rows: list[dict[str, Any]], name: str, tensors: int) -> np.ndarray[Any, Any]:
    kind = {"numbers": np.float16, "channels": np.int32}.get(name, np.float32)
    array = np.array([row[name] for row in rows], dtype=kind).reshape(len(rows), -1)
    return array.reshape(len(rows), tensors, -1) if name in ("quantiles", "moments") else array
