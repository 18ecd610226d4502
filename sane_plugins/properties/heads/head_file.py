"""Property heads as one safetensors file of arrays and metadata, without executable content.

skops would store scikit-learn estimators, which need the scikit-learn version that fitted them; these arrays
need only numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sane_plugins.formats import PROPERTY_HEADS, load_artifact, save_artifact
from sane_plugins.properties.heads.category_head import CategoryHead
from sane_plugins.properties.heads.conformal import Widths
from sane_plugins.properties.heads.head_checks import require_valid, require_valid_kinds
from sane_plugins.properties.heads.in_distribution import TrainingSupport
from sane_plugins.properties.heads.kinds_head import KindsHead
from sane_plugins.properties.heads.numeric_head import PropertyHead
from sane_plugins.properties.regressors import (
    MEMBER_TYPES,
    Array,
    Member,
    member_arrays,
    member_from_arrays,
)

AnyHead = PropertyHead | CategoryHead | KindsHead
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
        if isinstance(head, KindsHead):
            about[name], arrays = _kinds_parts(name, head)
        else:
            about[name], arrays = _parts(name, head)
        stored |= arrays
    # Copies, because tensors in a file may not share memory, and arrays may have any memory order.
    tensors = {key: torch.from_numpy(np.array(value, order="C")) for key, value in stored.items()}
    description = {"version": PROPERTY_HEADS.version, "heads": about}
    return save_artifact(PROPERTY_HEADS, description, tensors, path)


def _parts(name: str, head: PropertyHead | CategoryHead) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the description of a head of one kind, and its arrays, whose names begin with `name`."""
    about = {key: getattr(head, key) for key in (*_COMMON_FIELDS, *_FIELDS_BY_TYPE[type(head)])}
    about |= {"scores": dict(head.scores), "members": [m.kind for m in head.members]}
    about |= {"zoos": [*head.zoos]}
    arrays = {f"{name}/structure": head.structure} | _member_parts(name, head.members)
    for part, kind in _ARRAY_DATACLASSES.items():
        if (value := getattr(head, part, None)) is not None:
            arrays |= {f"{name}/{part}/{f.name}": getattr(value, f.name) for f in fields(kind)}
    return about, arrays


def _kinds_parts(name: str, head: KindsHead) -> tuple[dict[str, Any], dict[str, Array]]:
    about: dict[str, Any] = {"property": head.property, "experts": []}
    arrays: dict[str, Array] = {}
    for i, expert in enumerate(head.experts):
        told, found = _parts(f"{name}/expert{i}", expert)
        about["experts"].append(told)
        arrays |= found
    about["ranker"] = [member.kind for member in head.ranker]
    return about, arrays | _member_parts(f"{name}/ranker", head.ranker)


def _member_parts(name: str, members: Sequence[Member]) -> dict[str, Array]:
    return {
        f"{name}/{i}/{key}": value
        for i, member in enumerate(members)
        for key, value in member_arrays(member).items()
    }


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
            require_valid_kinds(head) if isinstance(head, KindsHead) else require_valid(head)
        except ValueError as error:
            raise ValueError(f"head '{name[:40]}', {error}") from error
    return heads


def _read_head(name: str, about: Mapping[str, Any], tensors: Mapping[str, Array]) -> AnyHead:
    if "experts" not in about:
        return _read_one_kind(name, about, tensors)
    experts = [
        _read_one_kind(f"{name}/expert{i}", told, tensors)
        for i, told in enumerate(about["experts"])
    ]
    if not experts or not all(isinstance(x, PropertyHead) for x in experts):
        raise ValueError("its experts are no numeric heads")
    ranker = _read_members(f"{name}/ranker", about["ranker"], tensors)
    return KindsHead(
        property=about["property"],
        experts=tuple(x for x in experts if isinstance(x, PropertyHead)),
        ranker=ranker,
    )


def _read_one_kind(
    name: str, about: Mapping[str, Any], tensors: Mapping[str, Array]
) -> PropertyHead | CategoryHead:
    members = _read_members(name, about["members"], tensors)
    support = _read_dataclass(TrainingSupport, f"{name}/support/", tensors)
    known = {key: about[key] for key in (*_COMMON_FIELDS, "scores")}
    known |= {"members": members, "support": support, "structure": tensors[f"{name}/structure"]}
    known |= {"zoos": _listed("zoos", about.get("zoos", []))}
    if "classes" in about:
        classes = _listed("classes", about["classes"])
        return CategoryHead(**known, classes=classes, radius=about["radius"])
    widths = _read_dataclass(Widths, f"{name}/widths/", tensors)
    own = {key: about[key] for key in _FIELDS_BY_TYPE[PropertyHead]}
    return PropertyHead(**known, **own, widths=widths)


def _listed(name: str, found: Any) -> tuple[Any, ...]:
    """Return the items of a list; a text or an object would be read as its characters or keys."""
    if not isinstance(found, list):
        raise ValueError(f"{name} are no list")
    return tuple(found)


def _read_members(
    name: str, kinds: Sequence[str], tensors: Mapping[str, Array]
) -> tuple[Member, ...]:
    return tuple(_read_member(kind, f"{name}/{i}/", tensors) for i, kind in enumerate(kinds))


def _read_member(kind: str, prefix: str, tensors: Mapping[str, Array]) -> Member:
    names = [field.name for field in fields(MEMBER_TYPES[kind])]
    own = {name: tensors[prefix + name] for name in names if prefix + name in tensors}
    return member_from_arrays(kind, own)


def _read_dataclass(kind: type[Any], prefix: str, tensors: Mapping[str, Array]) -> Any:
    """Build a dataclass from the arrays with this prefix."""
    return kind(*(tensors[prefix + f.name] for f in fields(kind)))
