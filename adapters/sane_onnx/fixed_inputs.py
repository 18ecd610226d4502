"""Give the inputs of a model the sizes that it leaves open: a batch, and what the user names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, ValueInfoProto

from sane_onnx.model_file.inline import InlinedModel
from sane_plugins.cost import CostOptions
from sane_plugins.errors import SourceError
from sane_plugins.weights import shape_text


@dataclass(frozen=True)
class FixedInputs:
    """A model's inputs with all sizes, their shapes, and notes on sizes that the file fixes otherwise."""

    values: Mapping[str, ValueInfoProto]
    shapes: Sequence[tuple[int, ...]]
    notes: tuple[str, ...]


def fixed_inputs(
    model: ModelProto, inlined: InlinedModel, options: CostOptions, path: Path
) -> FixedInputs:
    """Return the inputs of the main graph. Raises `SourceError` for a size that nobody names."""
    named = dict(options.dims)
    values: dict[str, ValueInfoProto] = {}
    shapes: list[tuple[int, ...]] = []
    notes: list[str] = []
    names = [value.name for value in model.graph.input if value.name in inlined.inputs]
    for name in names:
        value = ValueInfoProto()
        value.CopyFrom(inlined.inputs[name])
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
            raise _open_size(path, name, "its shape is not in the file")
        wanted = _wanted(len(kind.shape.dim), options)
        for axis, size in enumerate(kind.shape.dim):
            number = named.get(size.dim_param, wanted.get(axis))
            if size.dim_value <= 0:  # -1 stands for an open size too
                if number is None:
                    called = f" '{size.dim_param}'" if size.dim_param else ""
                    raise _open_size(path, name, f"it leaves the size{called} of axis {axis} open")
                size.dim_value = number
        values[name] = value
        shape = tuple(size.dim_value for size in kind.shape.dim)
        shapes.append(shape)
        notes += _differences(name, shape, wanted, options)
    return FixedInputs(values, shapes, tuple(notes))


def _wanted(rank: int, options: CostOptions) -> dict[int, int]:
    """Return the sizes that the options give an input of a rank, by axis."""
    wanted = {0: options.batch} if rank else {}
    if options.shape is not None and len(options.shape) == rank - 1:
        wanted |= dict(enumerate(options.shape, 1))
    elif options.size is not None and rank > 2:
        wanted |= dict.fromkeys(range(2, rank), options.size)
    return wanted


def _differences(
    name: str, shape: tuple[int, ...], wanted: Mapping[int, int], options: CostOptions
) -> Iterator[str]:
    """Yield a note where the file fixes other sizes than those that were asked for."""
    asked = {axis: x for axis, x in wanted.items() if axis or options.batch != 1}
    if any(shape[axis] != number for axis, number in asked.items()):
        yield f"counted at {shape_text(shape)}, which the file fixes for its input '{name}'"


def _open_size(path: Path, name: str, found: str) -> SourceError:
    return SourceError(
        f"{path}, input '{name}'",
        found,
        "the cost follows from sizes, and none is guessed",
        "name it with --dim NAME N, --size 224 for images, or --shape 3,224,224 for all axes after the batch",
    )
