"""Property heads as one safetensors file: arrays and a description, nothing that runs.

skops would keep scikit-learn's own estimators, which need the version of scikit-learn that fitted them; these
arrays run with numpy alone, and are the heads' own form.
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
from sane_plugins.properties.in_distribution import TrainingSupport
from sane_plugins.properties.numeric_head import PropertyHead
from sane_plugins.properties.regressors import MEMBER_TYPES, Array, Member, member_arrays

AnyHead = PropertyHead | CategoryHead
_COMMON = ("property", "features", "coverage", "sane")
_OWN = {
    PropertyHead: ("unit", "low", "high", "regressor"),
    CategoryHead: ("classes", "radius"),
}
_PARTS = {"support": TrainingSupport, "widths": Widths}


def save_heads(heads: Mapping[str, AnyHead], path: str | Path) -> Path:
    """Write heads, whole or not at all; the inverse of `load_heads`."""
    stored: dict[str, Array] = {}
    about: dict[str, Any] = {}
    for name, head in heads.items():
        about[name] = {key: getattr(head, key) for key in (*_COMMON, *_OWN[type(head)])}
        about[name] |= {"scores": dict(head.scores), "members": [m.kind for m in head.members]}
        for part, kind in _PARTS.items():
            if (value := getattr(head, part, None)) is not None:
                stored |= {f"{name}/{part}/{f.name}": getattr(value, f.name) for f in fields(kind)}
        stored[f"{name}/structure"] = head.structure
        for i, member in enumerate(head.members):
            stored |= {f"{name}/{i}/{key}": value for key, value in member_arrays(member).items()}
    # Copies, because two tensors of a file may not share memory, and arrays may lie in any order.
    tensors = {key: torch.from_numpy(np.array(value, order="C")) for key, value in stored.items()}
    description = {"version": PROPERTY_HEADS.version, "heads": about}
    return save_artifact(PROPERTY_HEADS, description, tensors, path)


def load_heads(path: str | Path) -> dict[str, AnyHead]:
    """Read heads by property. Raises `ZooError` for a missing or broken file, or another kind or version."""
    return load_artifact(PROPERTY_HEADS, path, _heads)


def _heads(about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, AnyHead]:
    stored = {key: value.numpy() for key, value in tensors.items()}
    return {name: _head(name, head, stored) for name, head in about["heads"].items()}


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
    made: Member = _part(MEMBER_TYPES[kind], prefix, tensors)
    return made


def _part(kind: type[Any], prefix: str, tensors: Mapping[str, Array]) -> Any:
    """Return the dataclass whose fields are these arrays."""
    return kind(*(tensors[prefix + f.name] for f in fields(kind)))
