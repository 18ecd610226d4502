"""Features of a zoo's networks, computed once and kept beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from sane_plugins.autoencoder import SANE, fingerprint
from sane_plugins.errors import SaneError
from sane_plugins.features import EncodeOptions, Encoder
from sane_plugins.formats import ZOO_FEATURES, load_artifact, save_artifact
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.properties.regressors import Array
from sane_plugins.zoo import Entry, Zoo

_VERSION = 1
_SAVED_EVERY = 200  # networks, as work that a kill may lose


def zoo_features(
    zoo: Zoo,
    entries: Sequence[Entry],
    encoder: Encoder,
    model: SANE | None = None,
    report: Report = silent,
) -> tuple[Array, list[str]]:
    """Return features (N, F) of entries, whose weights must be finite, and notes.

    They are kept in the zoo's folder by the digests of weights, for `model` where the encoder has one;
    entries of zoos of version 1 have no digest, and are computed each time. Where the folder cannot
    be written, a note says so.
    """
    path = zoo.folder / _file_name(encoder, model)
    known = _read(path)
    missing = [entry for entry in entries if entry.digest not in known]
    found: dict[str, Array] = {}
    notes: list[str] = []
    options = EncodeOptions(report=report)
    for i, entry in enumerate(missing):
        report(Progress(job=f"features {encoder.name}", done=i, total=len(missing), note=entry.key))
        found[entry.key] = encoder.features(zoo.graph(entry), options).numpy()
        if entry.digest:
            known[entry.digest] = found[entry.key]
        if i % _SAVED_EVERY == _SAVED_EVERY - 1:
            notes = _write(path, known)
    if missing:
        report(Progress(job=f"features {encoder.name}", done=len(missing), total=len(missing)))
        notes = _write(path, known)
    rows = [found[x.key] if x.key in found else known[x.digest] for x in entries]
    return np.stack(rows), notes


def _file_name(encoder: Encoder, model: SANE | None) -> str:
    return f"features-{encoder.name}{f'-{fingerprint(model)}' if model else ''}.safetensors"


def _read(path: Path) -> dict[str, Array]:
    """Return the kept features by digest; none where the file is missing, or not such a file."""
    with suppress(SaneError):
        return load_artifact(ZOO_FEATURES, path, _decode)
    return {}


def _decode(
    description: Mapping[str, object], tensors: Mapping[str, torch.Tensor]
) -> dict[str, Array]:
    digests, features = description["digests"], tensors["features"].numpy()
    if not isinstance(digests, list) or features.ndim != 2 or len(features) != len(digests):
        raise ValueError("its features are not those of its digests")
    if not np.isfinite(features).all():
        raise ValueError("its features are not finite")
    return {str(digest): row for digest, row in zip(digests, features, strict=True)}


def _write(path: Path, known: Mapping[str, Array]) -> list[str]:
    """Keep features; return a note where that is not possible."""
    if not known:
        return []
    features = torch.from_numpy(np.stack([*known.values()]))
    description = {"version": _VERSION, "digests": [*known]}
    try:
        save_artifact(ZOO_FEATURES, description, {"features": features}, path)
    except SaneError as error:
        return [f"features are not kept ({error.found})"]
    return []
