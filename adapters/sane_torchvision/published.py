"""Fetch torchvision's published weights, or say soon and clearly that no network is reachable."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from http.client import HTTPException
from pickle import UnpicklingError
from typing import Any

from torch import nn

from sane_plugins.architectures import ModelSpec, Notes, import_torchvision
from sane_plugins.errors import SourceError

PATIENCE = 10.0  # seconds without a byte
# What the builder derives from published weights, and a network of other classes needs as well.
_DERIVED = ("image_size", "transform_input")


def of_name(name: str) -> Mapping[str, Any]:
    """Return the published weights of a network by their names."""
    return import_torchvision().models.get_model_weights(name).__members__  # type: ignore[no-any-return]


def fetched(recipe: ModelSpec, weights: Any) -> tuple[nn.Module, Mapping[str, Any], Notes]:
    """Return the network as its builder makes it for these weights, what that implies, and notes.

    The builder reads the weights itself, since some files have keys of old versions. Raises
    `SourceError` where they cannot be fetched.
    """
    plain = weights.meta.get("unquantized", weights)
    notes = () if plain is weights else (f"the weights before quantisation, {plain}, are read",)
    try:
        with _patience():
            # The builder unpickles anything, so the fetched file is proved harmless first.
            plain.get_state_dict(
                progress=False, check_hash=True, map_location="cpu", weights_only=True
            )
        module = recipe.builder(weights=plain, progress=False)
    except (OSError, RuntimeError, HTTPException, UnpicklingError) as error:
        raise SourceError(
            f"{recipe.label}@{weights.name}",
            f"{plain.url} cannot be fetched ({error})",
            "its published weights come from there",
            f"fetch the file elsewhere and name it as {recipe.label}@FILE",
        ) from error
    known = [key for key in _DERIVED if key in recipe.takes and hasattr(module, key)]
    return module, {key: getattr(module, key) for key in known}, notes


@contextmanager
def _patience() -> Iterator[None]:
    """Give up on a server that does not answer, where torch waits for ever; keep stdout for data."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        socket.setdefaulttimeout(before)
