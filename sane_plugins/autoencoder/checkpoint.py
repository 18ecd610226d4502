"""A SANE as one safetensors file: weights, configuration and version."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch

from sane_plugins.autoencoder.model import SANE, SANEConfig
from sane_plugins.formats import (
    SANE_MODEL,
    fill_module,
    load_artifact,
    read_config,
    read_description,
    save_artifact,
)

# What earlier versions' configurations had not: it is written only where it is not as they had it.
_ADDED = {"places": "absolute", "fills": False}


def save_sane(
    model: SANE,
    path: str | Path,
    metadata: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a model atomically; the inverse of `load_sane` up to `dtype`."""
    tensors = {key: value.to(dtype) for key, value in model.state_dict().items()}
    config = {k: v for k, v in asdict(model.config).items() if k not in _ADDED or v != _ADDED[k]}
    about = {**(metadata or {}), "version": SANE_MODEL.version, "config": config}
    return save_artifact(SANE_MODEL, about, tensors, path)


def load_sane(path: str | Path, device: torch.device | str = "cpu") -> SANE:
    """Read a model. Raises `ZooError` for a missing or broken file, or one of another kind or version."""
    return load_artifact(SANE_MODEL, path, _build_model).to(device)


def _build_model(about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> SANE:
    config = read_config(SANEConfig, about["config"])
    with torch.device("meta"):
        model = SANE(config)
    return fill_module(model, tensors)


@lru_cache(maxsize=1)
def embedded_sane() -> SANE:
    """Return the model that ships with the package."""
    with as_file(files("sane_plugins") / "data" / "sane.safetensors") as path:
        return load_sane(path)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Return a model file's metadata: version, configuration, and training options and zoos."""
    return read_description(SANE_MODEL, path)


def fingerprint(model: SANE) -> str:
    """Return a hash of a model's parameters, to avoid mixing features of different models."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]
