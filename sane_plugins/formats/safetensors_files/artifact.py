"""Artefacts (models, heads, embeddings, training states): safetensors files with one JSON metadata entry.

The key of the entry is the kind of artefact; its JSON object describes the tensors. There is only one entry,
because safetensors writes several in arbitrary order, and equal artefacts must give equal bytes.
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
from sane_plugins.errors import SaneError, SourceError, UsageError, ZooError, first_line
from sane_plugins.formats.guards import require_file
from sane_plugins.formats.safetensors_files.lazy_tensors import LazyTensors

T = TypeVar("T")
M = TypeVar("M", bound=torch.nn.Module)
Description = Mapping[str, Any]
_ALIGNMENT = 8  # bytes that the header of a safetensors file is padded to


@dataclass(frozen=True, kw_only=True)
class ArtifactKind:
    """A kind of artefact: the key of its metadata entry, and the wording of its errors.

    `version` is the supported version; None for kinds whose files have none.
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
        """Return the `needed` part of an error."""
        version = "" if self.version is None else f" of version {self.version}"
        return f"{self.name}{version} {'is' if self.article else 'are'} needed"

    def error(self, path: Path, found: str) -> ZooError:
        """Return the error for a file that holds something else."""
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
FINGERPRINTS = ArtifactKind(
    key="sane_fingerprints",
    noun="fingerprints",
    version=1,
    way_out="delete the file, and index the zoo again",
)
ZOO_FEATURES = ArtifactKind(
    key="sane_features",
    noun="features of a zoo",
    version=1,
    way_out="delete the file: they are computed again",
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
_KINDS = (
    SANE_MODEL,
    PROPERTY_HEADS,
    DENOISER,
    EMBEDDINGS,
    FINGERPRINTS,
    ZOO_FEATURES,
    PRETRAINING_STATE,
    ZOO_TRAINING_STATE,
)
HEADER = "sane"  # metadata key of a network's file: order, ties and axes of its tensors


def save_artifact(
    kind: ArtifactKind,
    description: Description,
    tensors: Mapping[str, torch.Tensor],
    path: str | Path,
) -> Path:
    """Write tensors and their description to a file atomically.

    `description` holds `version` where the kind has one. Raises
    `SourceError` where the file cannot be written.
    """
    assert description.get("version") == kind.version
    stored = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    metadata = {kind.key: json.dumps(description)}
    return write_whole(Path(path), lambda partial: save_file(stored, partial, metadata=metadata))


def load_artifact(
    kind: ArtifactKind,
    path: str | Path,
    decode: Callable[[Description, Mapping[str, torch.Tensor]], T],
) -> T:
    """Load an artefact: read its description and tensors into memory, and decode them.

    Raises `ZooError` for a file that is missing, broken, of another kind or version, and where `decode`
    finds a part missing or wrong.
    """
    path = Path(path)
    stored, description = _open(kind, path)
    try:
        return decode(description, {key: stored[key] for key in stored})
    except SaneError:
        raise
    except KeyError as error:
        raise kind.error(path, f"its part {error} is missing") from error
    except (
        ArithmeticError,
        AttributeError,
        IndexError,
        MemoryError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:
        raise kind.error(path, f"a part of it is wrong ({first_line(error)})") from error


def read_config(config: type[T], stored: Any) -> T:
    """Build a dataclass from the fields that a description holds; raise `ValueError` where it refuses one."""
    try:
        return config(**stored)
    except UsageError as error:  # it would blame the caller, not the file
        raise ValueError(f"{error.place}: {error.found}") from error


def fill_module(module: M, tensors: Mapping[str, torch.Tensor]) -> M:
    """Give a module that was built on the device `meta` its tensors, as float32, to be evaluated only.

    Nothing is allocated before all names and shapes agree. Raises `ValueError` where they do not, and for
    values that are no finite floating-point numbers.
    """
    needed = module.state_dict()
    for key in sorted(needed.keys() ^ tensors.keys()):
        raise ValueError(f"tensor '{key}' is {'missing' if key in needed else 'unknown'}")
    for key, tensor in tensors.items():
        require_like(key, tensor, needed[key])
    module.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=True)
    return module.eval().requires_grad_(False)


def require_like(name: str, tensor: torch.Tensor, like: torch.Tensor) -> None:
    """Raise `ValueError` unless a tensor has the shape and kind of another, and values that float32 holds."""
    if tensor.shape != like.shape:
        shapes = f"{tuple(tensor.shape)}, not {tuple(like.shape)}"
        raise ValueError(f"tensor '{name}' has the shape {shapes}")
    is_float = like.dtype.is_floating_point
    if tensor.dtype.is_floating_point != is_float or not (is_float or tensor.dtype == like.dtype):
        raise ValueError(f"tensor '{name}' is of type {str(tensor.dtype).removeprefix('torch.')}")
    if is_float and not bool(tensor.float().isfinite().all()):
        raise ValueError(f"tensor '{name}' holds values that are not finite")


def read_description(kind: ArtifactKind, path: str | Path) -> dict[str, Any]:
    """Return the description of a file's tensors. Raises `ZooError` as `load_artifact` does."""
    return _open(kind, Path(path))[1]


def require_network(path: Path, metadata: Mapping[str, str]) -> None:
    """Raise `SourceError` where the metadata are those of an artefact, not of a network."""
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
        description = json.loads(stored.metadata[kind.key])
    except (ValueError, RecursionError) as error:
        raise kind.error(path, "its description is no JSON") from error
    if not isinstance(description, dict):
        raise kind.error(path, "its description is no JSON object")
    if (version := description.get("version")) != kind.version:
        given = "not given" if version is None else repr(version)[:40]
        raise kind.error(path, f"its version is {given}")
    return stored, description


def _content(metadata: Mapping[str, str]) -> str:
    """Describe what a file holds according to its metadata, or return an empty string."""
    names = [kind.name for kind in _KINDS if kind.key in metadata]
    return names[0] if names else "a network" if HEADER in metadata else ""


@dataclass(frozen=True)
class StoredRows:
    """A float32 matrix (rows, columns) stored in a file in row-major order."""

    path: Path
    rows: int

    @property
    def shape(self) -> tuple[int, int]:
        """Return rows and columns."""
        return self.rows, self.path.stat().st_size // (4 * self.rows)


def stream_artifact(
    kind: ArtifactKind, tensors: Mapping[str, torch.Tensor | StoredRows], path: Path
) -> Path:
    """Write float32 and float64 tensors one by one, so that tensors kept in files may exceed memory."""
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
