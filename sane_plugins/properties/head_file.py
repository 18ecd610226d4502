"""Property heads as one safetensors file: arrays and a description, nothing that runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sane_plugins.atomic_files import write_whole
from sane_plugins.errors import ZooError
from sane_plugins.properties.category_head import CategoryHead
from sane_plugins.properties.conformal import Widths
from sane_plugins.properties.in_distribution import TrainingSupport
from sane_plugins.properties.numeric_head import PropertyHead
from sane_plugins.properties.regressors import KINDS, Array, Member, arrays

VERSION = 2
HEADER = "sane_heads"
AnyHead = PropertyHead | CategoryHead
_COMMON = ("property", "features", "coverage", "sane")
_OWN = {
    PropertyHead: ("unit", "low", "high", "regressor"),
    CategoryHead: ("classes", "radius"),
}
_PARTS = {"support": TrainingSupport, "widths": Widths}


def save_heads(heads: Mapping[str, AnyHead], path: str | Path) -> Path:
    """Write heads beside their place and rename the file; the inverse of `load_heads`."""
    path = Path(path)
    tensors: dict[str, Array] = {}
    about: dict[str, Any] = {}
    for name, head in heads.items():
        about[name] = {key: getattr(head, key) for key in (*_COMMON, *_OWN[type(head)])}
        about[name] |= {"scores": dict(head.scores), "members": [m.kind for m in head.members]}
        for part, kind in _PARTS.items():
            if (held := getattr(head, part, None)) is not None:
                tensors |= {f"{name}/{part}/{f.name}": getattr(held, f.name) for f in fields(kind)}
        tensors[f"{name}/structure"] = head.structure
        for i, member in enumerate(head.members):
            tensors |= {f"{name}/{i}/{key}": value for key, value in arrays(member).items()}
    # One entry, because the format writes several in any order: same heads, same bytes.
    header = {HEADER: json.dumps({"version": VERSION, "heads": about})}
    return write_whole(path, lambda partial: save_file(tensors, partial, metadata=header))


def load_heads(path: str | Path) -> dict[str, AnyHead]:
    """Read heads by property. Raises `ZooError` for a missing or broken file, or another version."""
    metadata, tensors = _read(Path(path))
    if metadata.get("version") != VERSION:
        raise ZooError(
            path,
            f"its version is {metadata.get('version', 'not given')}",
            f"property heads of version {VERSION} are needed",
            "fit them again with 'sane-plugins heads fit'",
        )
    try:
        return {name: _head(name, about, tensors) for name, about in metadata["heads"].items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ZooError(
            path,
            f"a part is missing or wrong ({error})",
            "whole property heads are needed",
            "fit them again with 'sane-plugins heads fit'",
        ) from error


def _head(name: str, about: Mapping[str, Any], tensors: Mapping[str, Array]) -> AnyHead:
    members = tuple(
        _member(kind, f"{name}/{i}/", tensors) for i, kind in enumerate(about["members"])
    )
    support = _part(TrainingSupport, f"{name}/support/", tensors)
    known = {key: about[key] for key in (*_COMMON, "scores")}
    known |= {"members": members, "support": support, "structure": tensors[f"{name}/structure"]}
    if "classes" in about:
        classes = tuple(about["classes"])
        return CategoryHead(**known, classes=classes, radius=about["radius"])
    widths = _part(Widths, f"{name}/widths/", tensors)
    own = {key: about[key] for key in _OWN[PropertyHead]}
    return PropertyHead(**known, **own, widths=widths)


def _member(kind: str, prefix: str, tensors: Mapping[str, Array]) -> Member:
    made: Member = _part(KINDS[kind], prefix, tensors)
    return made


def _part(kind: type[Any], prefix: str, tensors: Mapping[str, Array]) -> Any:
    """Return the dataclass whose fields are these arrays."""
    return kind(*(tensors[prefix + f.name] for f in fields(kind)))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    try:
        with safe_open(path, framework="numpy") as file:
            told = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            return told, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ZooError(
            path,
            f"it cannot be read ({error})",
            "property heads in a safetensors file are needed",
            "check the path, or fit them with 'sane-plugins heads fit'",
        ) from error
