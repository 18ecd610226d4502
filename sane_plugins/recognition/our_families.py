"""Networks of our own families, whose widths and depths are free: the shapes say which one it may be."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import count
from math import isqrt
from typing import Any

from sane_plugins.architectures import build
from sane_plugins.errors import SaneError
from sane_plugins.recognition.meta_build import build_on_meta
from sane_plugins.recognition.photo_families import photo_factories
from sane_plugins.recognition.signature import Shapes, float_shapes

Factory = Mapping[str, Any]
_MAX_TENSORS = 2000  # of a network that is built to compare it
_COLOURS = (1, 3)


def our_factories(shapes: Shapes) -> Iterator[Factory]:
    """Yield the names and arguments of our families that build a network of exactly these shapes."""
    if len(shapes) > _MAX_TENSORS:
        return
    for propose in _PROPOSALS:
        for factory in propose(shapes):
            if _built_shapes(json.dumps(factory)) == shapes:
                yield factory
                break


@lru_cache(maxsize=64)
def _built_shapes(factory: str) -> Shapes:
    """Return the shapes of what a factory, as JSON, builds; none where these arguments build nothing."""
    try:
        return float_shapes(build_on_meta(lambda: build(json.loads(factory))))
    except SaneError:  # what was proposed by a stranger's shapes
        return {}


def _cnns(shapes: Shapes) -> Iterator[Factory]:
    first, last = shapes.get("0.weight", ()), shapes.get("14.weight", ())
    if len(shapes) != 10 or len(first) != 4 or len(last) != 2:
        return
    counts = {"channels_in": first[1], "classes": last[0]}
    yield {"name": "small_cnn", **counts}
    narrow = 8 if first[1] == 1 else 16
    yield {"name": "wide_cnn", **counts, "factor": max(1, first[0] // narrow)}


def _mlps(shapes: Shapes) -> Iterator[Factory]:
    depth = len(shapes) // 2 - 1
    first, last = (shapes.get(f"{i}.weight", ()) for i in (1, 3 * depth + 1))
    if depth < 1 or len(first) != 2 or len(last) != 2:
        return
    for channels in _COLOURS:
        size = isqrt(first[1] // channels)
        if channels * size**2 == first[1]:
            yield {
                "name": "mlp",
                "channels_in": channels,
                "classes": last[0],
                "size": size,
                "width": first[0],
                "depth": depth,
            }


def _resnets(shapes: Shapes) -> Iterator[Factory]:
    first, last = shapes.get("conv1.weight", ()), shapes.get("linear.weight", ())
    blocks = _count(lambda i: f"layer1.{i}.conv1.weight" in shapes)
    if not blocks or len(first) != 4 or len(last) != 2:
        return
    has_convolution = "layer2.0.shortcut.0.weight" in shapes
    yield {
        "name": "resnet",
        "channels_in": first[1],
        "classes": last[0],
        "depth": 6 * blocks + 2,
        "width": first[0],
        "shortcut": "conv" if has_convolution else "pad",
        **({} if "bn1.weight" in shapes else {"norm": "none"}),
    }


def _vits(shapes: Shapes) -> Iterator[Factory]:
    depth = _count(lambda i: f"{i + 2}.qkv.weight" in shapes)
    patches, positions = shapes.get("0.weight", ()), shapes.get("1.positions", ())
    last = shapes.get(f"{depth + 4}.weight", ())
    if not depth or len(patches) != 4 or len(positions) != 2 or len(last) != 2:
        return
    yield {
        "name": "vit",
        "channels_in": patches[1],
        "classes": last[0],
        "size": patches[2] * isqrt(positions[0] - 1) if positions[0] > 0 else 0,
        "patch": patches[2],
        "width": patches[0],
        "depth": depth,
        # The shapes, and which channels may change places, are the same for any number.
        "heads": 3 if patches[0] % 3 == 0 else 1,
    }


def _count(is_there: Callable[[int], bool]) -> int:
    """Return the first number for which something is not there."""
    return next(i for i in count() if not is_there(i))


_PROPOSALS = (_cnns, _mlps, _resnets, _vits, photo_factories)
