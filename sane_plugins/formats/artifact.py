"""Artefacts: what this package learns or measures, as a safetensors file with one JSON metadata entry.

The entry's key says which kind of artefact it is; the JSON object in it describes the tensors. One entry,
because the format writes several in any order: same artefact, same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from safetensors.torch import save_file

from sane_plugins.atomic_files import write_whole
from sane_plugins.errors import SaneError, SourceError, ZooError, first_line
from sane_plugins.formats.guards import require_file
from sane_plugins.formats.lazy_tensors import LazyTensors

T = TypeVar("T")
Description = Mapping[str, Any]
_ALIGNMENT = 8  # bytes that the header of a safetensors file is padded to


@dataclass(frozen=True, kw_only=True)
class ArtifactKind:
    """One kind of artefact: the key of its metadata entry, and the words and way out of its errors.

    `version` is the one that is read; None for kinds whose files do not tell one.
    """

    key: str
    noun: str
    article: str = ""
    version: int | None = None
    way_out: str

    @property
    def name(self) -> str:
        """Return the noun with its article."""
        return f"{self.article} {self.noun}".strip()

    @property
    def needed(self) -> str:
        """Return what an error says is needed."""
        version = "" if self.version is None else f" of version {self.version}"
        return f"{self.name}{version} {'is' if self.article else 'are'} needed"

    def error(self, path: Path, found: str) -> ZooError:
        """Return the error for a file in which something else was found."""
        return ZooError(path, found, self.needed, self.way_out)


SANE_MODEL = ArtifactKind(
    key="sane_model",
    noun="SANE",
    article="a",
    version=1,
    way_out="check the path, or pretrain one with 'sane-plugins pretrain'",
)
PROPERTY_HEADS = ArtifactKind(
    key="sane_heads",
    noun="property heads",
    version=2,
    way_out="check the path, or fit them with 'sane-plugins heads fit'",
)
DENOISER = ArtifactKind(
    key="sane_diffusion",
    noun="denoiser",
    article="a",
    version=1,
    way_out="use the sampler kde, which needs no file",
)
EMBEDDINGS = ArtifactKind(
    key="sane_embeddings",
    noun="embeddings",
    version=1,
    way_out="check the path, or write them with 'sane-plugins embed'",
)
PRETRAINING_STATE = ArtifactKind(
    key="sane_run",
    noun="interrupted pretraining",
    article="an",
    way_out="delete the file to start anew",
)
ZOO_TRAINING_STATE = ArtifactKind(
    key="sane_zoo_group",
    noun="interrupted zoo training",
    article="an",
    way_out="add --force to start anew",
)
_KINDS = (SANE_MODEL, PROPERTY_HEADS, DENOISER, EMBEDDINGS, PRETRAINING_STATE, ZOO_TRAINING_STATE)
HEADER = "sane"  # the metadata entry of a network's file: order, ties and axes of its tensors


def save_artifact(
    kind: ArtifactKind, about: Description, tensors: Mapping[str, torch.Tensor], path: str | Path
) -> Path:
    """Write tensors and their description to a file, whole or not at all.

    `about` holds `version` where the kind has one. Raises `SourceError` where the file cannot be written.
    """
    assert about.get("version") == kind.version
    stored = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    metadata = {kind.key: json.dumps(about)}
    return write_whole(Path(path), lambda partial: save_file(stored, partial, metadata=metadata))


def load_artifact(
    kind: ArtifactKind,
    path: str | Path,
    decode: Callable[[Description, Mapping[str, torch.Tensor]], T],
) -> T:
    """Return what `decode` makes of a file's description and tensors, which have memory of their own.

    Raises `ZooError` for a file that is missing, broken, of another kind or version, and for one whose parts
    `decode` finds missing or wrong.
    """
    path = Path(path)
    stored, about = _open(kind, path)
    try:
        return decode(about, {key: stored[key] for key in stored})
    except SaneError:
        raise
    except KeyError as error:
        raise kind.error(path, f"its part {error} is missing") from error
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise kind.error(path, f"a part of it is wrong ({first_line(error)})") from error


def read_description(kind: ArtifactKind, path: str | Path) -> dict[str, Any]:
    """Return what a file says of its tensors. Raises `ZooError` as `load_artifact` does."""
    return _open(kind, Path(path))[1]


def require_network(path: Path, metadata: Mapping[str, str]) -> None:
    """Raise `SourceError` for the metadata of an artefact, whose tensors are no network's."""
    for kind in _KINDS:
        if kind.key in metadata:
            raise SourceError(
                path,
                f"it holds our own {kind.noun}",
                "the weights of a network are needed",
                "name another file",
            )


def _open(kind: ArtifactKind, path: Path) -> tuple[LazyTensors, dict[str, Any]]:
    try:
        stored = LazyTensors(require_file(path))
    except SourceError as error:
        raise kind.error(path, error.found) from error
    if kind.key not in stored.metadata:
        raise kind.error(path, f"it holds {_content(stored.metadata) or f'no {kind.noun}'}")
    try:
        about = json.loads(stored.metadata[kind.key])
    except (ValueError, RecursionError) as error:
        raise kind.error(path, "its description is no JSON") from error
    if not isinstance(about, dict):
        raise kind.error(path, "its description is no JSON object")
    if (version := about.get("version")) != kind.version:
        raise kind.error(path, f"its version is {'not given' if version is None else version}")
    return stored, about


def _content(metadata: Mapping[str, str]) -> str:
    """Return what a file holds by its metadata; nothing where they do not tell."""
    names = [kind.name for kind in _KINDS if kind.key in metadata]
    return names[0] if names else "a network" if HEADER in metadata else ""


@dataclass(frozen=True)
class StoredRows:
    """A matrix (rows, columns) of float32 whose values lie in a file, row by row."""

    path: Path
    rows: int

    @property
    def shape(self) -> tuple[int, int]:
        """Return rows and columns."""
        return self.rows, self.path.stat().st_size // (4 * self.rows)


def stream_artifact(
    kind: ArtifactKind, tensors: Mapping[str, torch.Tensor | StoredRows], path: Path
) -> Path:
    """Write tensors of float32 and float64 one by one, so that those in files may exceed memory."""
    header: dict[str, object] = {"__metadata__": {kind.key: str(kind.version)}}
    end = 0
    for name, tensor in tensors.items():
        is_double = isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64
        start, end = end, end + torch.Size(tensor.shape).numel() * (8 if is_double else 4)
        header[name] = {
            "dtype": "F64" if is_double else "F32",
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors.values():
                _append(file, tensor)

    return write_whole(path, write)


def _append(file: BinaryIO, tensor: torch.Tensor | StoredRows) -> None:
    if isinstance(tensor, StoredRows):
        with tensor.path.open("rb") as source:
            shutil.copyfileobj(source, file)
    else:
        file.write(tensor.numpy().tobytes())
