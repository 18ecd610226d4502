"""Encodings as one safetensors file; latents may be larger than memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from sane_plugins.features.encoders import Encoding
from sane_plugins.formats import EMBEDDINGS, StoredRows, stream_artifact


def write_encodings(
    encodings: Mapping[str, Encoding], latents: Mapping[str, Path], output: Path
) -> Path:
    """Write `<source>/latents`, `/embedding` and `/layers` of each source atomically.

    `latents` maps sources to the files written through `EncodeOptions.latents`; encodings that hold their
    latents need none. An encoder of a plugin may keep none: then there is no `<source>/latents`.
    """
    tensors: dict[str, torch.Tensor | StoredRows] = {}
    for source, encoding in encodings.items():
        if encoding.latents is not None:
            tensors[f"{source}/latents"] = _to_storable(encoding.latents)
        elif encoding.tokens and latents[source].exists():
            tensors[f"{source}/latents"] = StoredRows(latents[source], encoding.tokens)
        tensors[f"{source}/embedding"] = _to_storable(encoding.embedding)
        tensors[f"{source}/layers"] = _to_storable(encoding.layers)
    return stream_artifact(EMBEDDINGS, tensors, output)


def _to_storable(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.dtype == torch.float64 else tensor.float()
