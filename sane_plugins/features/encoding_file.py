"""Encodings as one safetensors file, whose latents may be larger than memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from sane_plugins.features.encoders import Encoding
from sane_plugins.formats import EMBEDDINGS, StoredRows, stream_artifact


def write_encodings(
    encodings: Mapping[str, Encoding], latents: Mapping[str, Path], output: Path
) -> Path:
    """Write `<source>/latents`, `/embedding` and `/layers` of each source, whole or not at all.

    `latents` names the files that `EncodeOptions.latents` had written, by source; an encoding that holds its
    latents needs none.
    """
    tensors: dict[str, torch.Tensor | StoredRows] = {}
    for source, encoding in encodings.items():
        values = encoding.latents
        tensors[f"{source}/latents"] = (
            StoredRows(latents[source], encoding.tokens) if values is None else _stored(values)
        )
        tensors[f"{source}/embedding"] = _stored(encoding.embedding)
        tensors[f"{source}/layers"] = _stored(encoding.layers)
    return stream_artifact(EMBEDDINGS, tensors, output)


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.dtype == torch.float64 else tensor.float()
