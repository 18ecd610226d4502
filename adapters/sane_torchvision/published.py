"""Download torchvision's published weights, with a timeout."""

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

TIMEOUT = 10.0  # seconds without a byte
# Builder arguments derived from published weights, which a model with other classes needs as well.
_DERIVED_ARGUMENTS = ("image_size", "transform_input")


def published_weights(name: str) -> Mapping[str, Any]:
    """Return the published weights of a network by their names."""
    return import_torchvision().models.get_model_weights(name).__members__  # type: ignore[no-any-return]


def fetch(spec: ModelSpec, weights: Any) -> tuple[nn.Module, Mapping[str, Any], Notes]:
    """Return the model with these weights, the arguments that the builder derived from them, and notes.

    The builder loads the weights itself, since some files have keys of old versions. Raises
    `SourceError` where they cannot be fetched.
    """
    unquantized = weights.meta.get("unquantized", weights)
    notes = (
        ()
        if unquantized is weights
        else (f"the weights before quantisation, {unquantized}, are read",)
    )
    try:
        with _network_timeout():
            # The builder unpickles anything, so the file is read with weights_only first.
            unquantized.get_state_dict(
                progress=False, check_hash=True, map_location="cpu", weights_only=True
            )
        module = spec.builder(weights=unquantized, progress=False)
    except (OSError, RuntimeError, HTTPException, UnpicklingError) as error:
        raise SourceError(
            f"{spec.label}@{weights.name}",
            f"{unquantized.url} cannot be fetched ({error})",
            "its published weights come from there",
            f"fetch the file elsewhere and name it as {spec.label}@FILE",
        ) from error
    derived = [key for key in _DERIVED_ARGUMENTS if key in spec.parameters and hasattr(module, key)]
    return module, {key: getattr(module, key) for key in derived}, notes


@contextmanager
def _network_timeout() -> Iterator[None]:
    """Set a network timeout, which torch lacks; redirect stdout, which is reserved for data."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        socket.setdefaulttimeout(before)
