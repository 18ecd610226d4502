"""Published zoos: `<name>.json` with one record per checkpoint, next to `<name>.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sane_plugins.errors import ZooError
from sane_plugins.zoo.index import Entry, check_entry, read_text
from sane_plugins.zoo.shards import open_tensors


def read_published(path: Path) -> tuple[Entry, ...]:
    """Read the records of a published zoo. Raises `ZooError` if a record or tensor is missing.

    Records name `model`, `epoch`, `act`, `p` (dropout) and measured properties; the architecture is
    `small_cnn`, with the number of input channels taken from the weights.
    """
    weights = path.with_suffix(".safetensors")
    text = read_text(path)
    try:
        records = json.loads(text)
        first = f"{records[0]['model']}/{records[0]['epoch']}/0.weight"
        channels = open_tensors(weights)(first).shape[1]
        return tuple(_entry(record, channels, weights.name) for record in records)
    except (
        KeyError,
        TypeError,
        IndexError,
        ValueError,
        RecursionError,
        SafetensorError,
    ) as error:
        raise ZooError(
            path,
            f"a record or tensor is missing or broken ({error})",
            "records with model, epoch, act and p are needed, and their tensors",
            "check that the .json and .safetensors belong together",
        ) from error


def _entry(record: Mapping[str, Any], channels: int, file: str) -> Entry:
    factory = {
        "name": "small_cnn",
        "channels_in": channels,
        "classes": 10,
        "act": record["act"],
        "dropout": record["p"],
    }
    properties = {key: value for key, value in record.items() if key != "model"}
    entry = Entry(
        network=str(record["model"]),
        checkpoint=str(record["epoch"]),
        factory=factory,
        properties=properties,
        file=file,
    )
    return check_entry(entry)  # before anything is written, or replaced
