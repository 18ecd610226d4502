"""Encodings as one safetensors file, whose latents may be larger than memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from sane_plugins.atomic_files import write_whole
from sane_plugins.features.encoders import Encoding

HEADER = {"sane_embeddings": "1"}
_ALIGNED = 8
_Part = torch.Tensor | Path


def write_encodings(
    done: Mapping[str, Encoding], latents: Mapping[str, Path], output: Path
) -> Path:
    """Write `<source>/latents`, `/embedding` and `/layers` of each source, beside and renamed.

    `latents` names the files that `EncodeOptions.latents` had written, by source; an encoding that holds its
    latents needs none.
    """
    parts: dict[str, _Part] = {}
    header: dict[str, object] = {"__metadata__": HEADER}
    end = 0
    for source, found in done.items():
        for name in ("latents", "embedding", "layers"):
            part, shape = _part(found, name, latents.get(source))
            size = part.stat().st_size if isinstance(part, Path) else part.numel() * part.itemsize
            wide = isinstance(part, torch.Tensor) and part.dtype == torch.float64
            header[f"{source}/{name}"] = {
                "dtype": "F64" if wide else "F32",
                "shape": shape,
                "data_offsets": [end, end + size],
            }
            parts[f"{source}/{name}"], end = part, end + size
    return write_whole(output, lambda partial: _write(header, parts, Path(partial)))


def _part(found: Encoding, name: str, file: Path | None) -> tuple[_Part, list[int]]:
    """Return a tensor, or the file that holds its values, and its shape."""
    tensor: torch.Tensor | None = getattr(found, name)
    if tensor is None:
        assert file is not None
        return file, [found.tokens, file.stat().st_size // (4 * found.tokens)]
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.dtype == torch.float64 else tensor.float(), list(tensor.shape)


def _write(header: Mapping[str, object], parts: Mapping[str, _Part], path: Path) -> None:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNED)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in parts.values():
            _append(file, part)


def _append(file: BinaryIO, part: _Part) -> None:
    if isinstance(part, Path):
        with part.open("rb") as source:
            shutil.copyfileobj(source, file)
    else:
        file.write(part.numpy().tobytes())
