"""Checks of heads that come from a file: their parts agree, and no estimate can loop or index wrongly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sane_plugins.properties.heads.category_head import CategoryHead
from sane_plugins.properties.heads.conformal import Widths
from sane_plugins.properties.heads.head import Head
from sane_plugins.properties.heads.in_distribution import TrainingSupport
from sane_plugins.properties.heads.kinds_head import KindsHead
from sane_plugins.properties.heads.numeric_head import PropertyHead
from sane_plugins.properties.regressors import Array, Member, Trees

_MAX_TEXT = 200  # characters of a name or unit
_MAX_CLASSES = 10_000
_MAX_MEMBERS = 16
_MAX_EXPERTS = 1_000
_MAX_RANKER_FEATURES = 2**16  # there are fewer where it is asked, which is checked then
_MAX_DEPTH = 1_000
_PERCENTILES = 101


def require_valid(head: PropertyHead | CategoryHead) -> None:
    """Raise `ValueError` that says which part of a head is wrong."""
    _require_description(head)
    width = len(_floats("support/centre", head.support.centre, 1))
    _require_support(head.support, width)
    _floats("structure", head.structure, 2, (None, 3))
    outputs = len(head.classes) if isinstance(head, CategoryHead) else 0
    for number, member in enumerate(head.members):
        try:
            _require_member(member, width, outputs)
        except ValueError as error:
            raise ValueError(f"member {number}, {error}") from error
    if isinstance(head, PropertyHead):
        _require_widths(head.widths)


def require_valid_kinds(head: KindsHead) -> None:
    """Raise `ValueError` that says which part of a head for several kinds is wrong."""
    _text("property", head.property)
    if not 1 <= len(head.experts) <= _MAX_EXPERTS:
        raise ValueError(f"it has {len(head.experts)} experts, not 1 to {_MAX_EXPERTS}")
    for number, expert in enumerate(head.experts):
        try:
            require_valid(expert)
        except ValueError as error:
            raise ValueError(f"expert {number}, {error}") from error
        if expert.property != head.property:
            raise ValueError(f"expert {number} predicts another property")
    if len({expert.sane for expert in head.experts} - {""}) > 1:
        raise ValueError("its experts read features of several SANEs")
    if len(head.ranker) > _MAX_MEMBERS:
        raise ValueError(f"its ranker has {len(head.ranker)} members")
    for member in head.ranker:
        if not isinstance(member, Trees):
            raise ValueError("its ranker has a member that is no trees")
        _require_trees(member, _MAX_RANKER_FEATURES, 0)


def _require_description(head: Head) -> None:
    _text("property", head.property)
    _text("sane", head.sane)
    for name in head.zoos:
        _text("zoo", name)
    if not _text("features", head.features):  # of an encoder, which a plugin may offer
        raise ValueError("features have no name")
    _number("coverage", head.coverage, 0.0, 1.0)
    if not isinstance(head.scores, Mapping):
        raise ValueError("scores are no JSON object")
    for name, score in head.scores.items():
        _number(f"score '{_text('score', name)}'", score)
    if not 1 <= len(head.members) <= _MAX_MEMBERS:
        raise ValueError(f"it has {len(head.members)} members, not 1 to {_MAX_MEMBERS}")
    if isinstance(head, PropertyHead):
        _text("unit", head.unit)
        _text("regressor", head.regressor)
        low, high = (_number(name, getattr(head, name), finite=False) for name in ("low", "high"))
        if low > high:
            raise ValueError("low is above high")
    elif isinstance(head, CategoryHead):
        _number("radius", head.radius, 0.0, finite=False)
        classes = [_text("class", name) for name in head.classes]
        if not 1 <= len(set(classes)) == len(classes) <= _MAX_CLASSES:
            raise ValueError(
                f"there are {len(classes)} classes, which are equal in part or too many"
            )


def _require_support(support: TrainingSupport, width: int) -> None:
    _positive("support/spread", support.spread, (width,))
    directions = _floats("support/directions", support.directions, 2, (width, None))
    _positive("support/power", support.power, (directions.shape[1] + 1,))
    _increasing("support/held_out", support.held_out, (_PERCENTILES,))


def _require_widths(widths: Widths) -> None:
    at = _increasing("widths/at", widths.at)
    half = _array("widths/half", widths.half, "f", 1, at.shape)
    if not (half >= 0).all():  # infinite where too few networks were known
        raise ValueError("widths/half is no width everywhere")


def _require_member(member: Member, width: int, outputs: int) -> None:
    """Check a member that reads `width` features; `outputs` counts its classes, 0 for a number."""
    if isinstance(member, Trees):
        _require_trees(member, width, outputs)
        return
    if outputs:
        raise ValueError("a linear one tells no classes")
    knots = _floats("knots", member.knots, 2, (None, width))
    if len(knots) < 2 or (np.diff(knots, axis=0) < 0).any():
        raise ValueError("knots do not increase")
    _floats("weight", member.weight, 1, (width,))
    _floats("offset", member.offset, 1, (1,))


def _require_trees(trees: Trees, width: int, outputs: int) -> None:
    """Require of every node that its children are itself (a leaf), or come after it in the same tree."""
    roots = _array("roots", trees.roots, "iu", 1).astype(np.int64)
    feature = _array("feature", trees.feature, "iu", 1)
    nodes = len(feature)
    if not len(roots) or roots[0] != 0 or (np.diff(roots) < 1).any() or roots[-1] >= nodes:
        raise ValueError("its roots are no increasing numbers of nodes")
    if (feature < 0).any() or (feature >= width).any():
        raise ValueError(f"a node reads a feature beyond the {width} there are")
    _floats("threshold", trees.threshold, 1, (nodes,))
    _floats("value", trees.value, 2 if outputs else 1, (nodes, outputs)[: 2 if outputs else 1])
    _floats("offset_factor", trees.offset_factor, 1, (2,))
    depth = int(_array("depth", trees.depth, "iu", 1, (1,))[0])
    if not 0 <= depth <= min(nodes, _MAX_DEPTH):
        raise ValueError(f"its depth is {depth}, of {nodes} nodes and at most {_MAX_DEPTH}")
    sizes = np.diff([*roots, nodes])
    own = np.arange(nodes) - np.repeat(roots, sizes)
    left, right = (
        _array(side, getattr(trees, side), "iu", 1, (nodes,)).astype(np.int64)
        for side in ("left", "right")
    )
    is_leaf = (left == own) & (right == own)
    for child in (left, right):
        if not (is_leaf | ((own < child) & (child < np.repeat(sizes, sizes)))).all():
            raise ValueError("a node's children do not come after it in its tree")


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise ValueError(f"{name} is no text of at most {_MAX_TEXT} characters")
    return value


def _number(
    name: str, value: Any, low: float = -np.inf, high: float = np.inf, finite: bool = True
) -> float:
    if type(value) not in (int, float) or not low <= value <= high:
        raise ValueError(f"{name} is {str(value)[:40]}")
    if finite and abs(value) > np.finfo(np.float64).max:
        raise ValueError(f"{name} is not finite")
    return float(value)


def _array(
    name: str, array: Array, kinds: str, axes: int, shape: tuple[int | None, ...] = ()
) -> Array:
    """Return the array; raise `ValueError` for another kind of numbers or shape, where None is any size."""
    is_shape = array.ndim == axes and all(
        n in (None, size) for n, size in zip(shape, array.shape, strict=False)
    )
    if array.dtype.kind not in kinds or not is_shape:
        raise ValueError(f"'{name}' is {array.dtype} of shape {array.shape}")
    return array


def _floats(name: str, array: Array, axes: int, shape: tuple[int | None, ...] = ()) -> Array:
    if not np.isfinite(_array(name, array, "f", axes, shape)).all():
        raise ValueError(f"'{name}' holds values that are not finite")
    return array


def _positive(name: str, array: Array, shape: tuple[int | None, ...]) -> None:
    if not (_floats(name, array, 1, shape) > 0).all():
        raise ValueError(f"'{name}' is not positive everywhere")


def _increasing(name: str, array: Array, shape: tuple[int | None, ...] = ()) -> Array:
    if not len(_floats(name, array, 1, shape)) or (np.diff(array) < 0).any():
        raise ValueError(f"'{name}' does not increase")
    return array
