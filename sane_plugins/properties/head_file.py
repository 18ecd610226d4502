"""Property heads as one safetensors file of arrays and metadata, without executable content.

skops would store scikit-learn estimators, which need the scikit-learn version that fitted them; these arrays
need only numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sane_plugins.formats import PROPERTY_HEADS, load_artifact, save_artifact
from sane_plugins.properties.category_head import CategoryHead
from sane_plugins.properties.conformal import Widths
from sane_plugins.properties.head_checks import require_valid
from sane_plugins.properties.in_distribution import TrainingSupport
from sane_plugins.properties.numeric_head import PropertyHead
from sane_plugins.properties.regressors import MEMBER_TYPES, Array, Member, member_arrays

AnyHead = PropertyHead | CategoryHead
_COMMON_FIELDS = ("property", "features", "coverage", "sane")
_FIELDS_BY_TYPE = {
    PropertyHead: ("unit", "low", "high", "regressor"),
    CategoryHead: ("classes", "radius"),
}
_ARRAY_DATACLASSES = {"support": TrainingSupport, "widths": Widths}


def save_heads(heads: Mapping[str, AnyHead], path: str | Path) -> Path:
    """Write heads atomically; the inverse of `load_heads`."""
    stored: dict[str, Array] = {}
    about: dict[str, Any] = {}
    for name, head in heads.items():
        about[name] = {
            key: getattr(head, key) for key in (*_COMMON_FIELDS, *_FIELDS_BY_TYPE[type(head)])
        }
        about[name] |= {"scores": dict(head.scores), "members": [m.kind for m in head.members]}
        for part, kind in _ARRAY_DATACLASSES.items():
            if (value := getattr(head, part, None)) is not None:
                stored |= {f"{name}/{part}/{f.name}": getattr(value, f.name) for f in fields(kind)}
        stored[f"{name}/structure"] = head.structure
        for i, member in enumerate(head.members):
            stored |= {f"{name}/{i}/{key}": value for key, value in member_arrays(member).items()}
    # Copies, because tensors in a file may not share memory, and arrays may have any memory order.
    tensors = {key: torch.from_numpy(np.array(value, order="C")) for key, value in stored.items()}
    description = {"version": PROPERTY_HEADS.version, "heads": about}
    return save_artifact(PROPERTY_HEADS, description, tensors, path)


def load_heads(path: str | Path) -> dict[str, AnyHead]:
    """Read heads by property. Raises `ZooError` for a missing or broken file, or another kind or version."""
    return load_artifact(PROPERTY_HEADS, path, _read_heads)


def _read_heads(
    about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> dict[str, AnyHead]:
    stored = {key: value.numpy() for key, value in tensors.items()}
    heads = {name: _read_head(name, head, stored) for name, head in about["heads"].items()}
    if not heads:
        raise ValueError("there is no head")
    for name, head in heads.items():
        try:
            require_valid(head)
        except ValueError as error:
            raise ValueError(f"head '{name[:40]}', {error}") from error
    return heads


def _read_head(name: str, about: Mapping[str, Any], tensors: Mapping[str, Array]) -> AnyHead:
    members = tuple(
        _read_member(kind, f"{name}/{i}/", tensors) for i, kind in enumerate(about["members"])
    )
    support = _read_dataclass(TrainingSupport, f"{name}/support/", tensors)
    known = {key: about[key] for key in (*_COMMON_FIELDS, "scores")}
    known |= {"members": members, "support": support, "structure": tensors[f"{name}/structure"]}
    if "classes" in about:
        classes = tuple(about["classes"])
        return CategoryHead(**known, classes=classes, radius=about["radius"])
    widths = _read_dataclass(Widths, f"{name}/widths/", tensors)
    own = {key: about[key] for key in _FIELDS_BY_TYPE[PropertyHead]}
    return PropertyHead(**known, **own, widths=widths)


def _read_member(kind: str, prefix: str, tensors: Mapping[str, Array]) -> Member:
    made: Member = _read_dataclass(MEMBER_TYPES[kind], prefix, tensors)
    return made


def _read_dataclass(kind: type[Any], prefix: str, tensors: Mapping[str, Array]) -> Any:
    """Build a dataclass from the arrays with this prefix."""
    return kind(*(tensors[prefix + f.name] for f in fields(kind)))
