"""A SANE as one safetensors file: weights, configuration and version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sane_plugins.atomic_files import write_whole
from sane_plugins.autoencoder.model import SANE, SANEConfig
from sane_plugins.errors import ZooError

VERSION = 1
HEADER = "sane_model"


def save_sane(
    model: SANE,
    path: str | Path,
    metadata: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a model beside its place and rename it; the inverse of `load` up to `dtype`."""
    path = Path(path)
    tensors = {key: value.to(dtype).contiguous() for key, value in model.state_dict().items()}
    # One entry, because the format writes several in any order: same model, same bytes.
    told = {**(metadata or {}), "version": VERSION, "config": asdict(model.config)}
    header = {HEADER: json.dumps(told)}
    return write_whole(path, lambda partial: save_file(tensors, partial, metadata=header))


def load_sane(path: str | Path, device: torch.device | str = "cpu") -> SANE:
    """Read a model. Raises `ZooError` for a missing or broken file, or one of another version."""
    metadata, tensors = _read(Path(path))
    if metadata.get("version") != VERSION:
        raise ZooError(
            path,
            f"its version is {metadata.get('version', 'not given')}",
            f"a SANE of version {VERSION} is needed",
            "pretrain one with 'sane-plugins pretrain'",
        )
    model = SANE(SANEConfig(**metadata["config"]))
    model.load_state_dict({key: value.float() for key, value in tensors.items()})
    return model.eval().requires_grad_(False).to(device)


@lru_cache(maxsize=1)
def embedded_sane() -> SANE:
    """Return the model that ships with the package."""
    with as_file(files("sane_plugins") / "data" / "sane.safetensors") as path:
        return load_sane(path)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Return what a model file says of itself: version, configuration, recipe."""
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            return told, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ZooError(
            path,
            f"it cannot be read ({error})",
            "a SANE in a safetensors file is needed",
            "check the path, or pretrain one with 'sane-plugins pretrain'",
        ) from error


def fingerprint(model: SANE) -> str:
    """Return what identifies a SANE's encoder: features of two models must not be mixed."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]
