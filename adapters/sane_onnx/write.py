"""Write a network's weights back into the ONNX model that it came from."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from google.protobuf.message import EncodeError, Message  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto

from sane_onnx.classify_constants import Uses, classify
from sane_onnx.constants import Constant
from sane_onnx.model_file.inline import inline_model
from sane_onnx.quantization.quantized import QuantizedWeight
from sane_onnx.read import OnnxTensors, read
from sane_onnx.tensors import StoredTensor, is_external
from sane_plugins.atomic_files import require_outputs, write_all
from sane_plugins.errors import SourceError
from sane_plugins.formats import files_read, require_file, sidecar, sidecar_writes
from sane_plugins.weights import WeightGraph

# Bytes; readers map these files into memory, at multiples of the page size.
_ALIGNMENT = 4096


def write(
    graph: WeightGraph, target: Path, metadata: Mapping[str, Any] | None = None, like: Any = None
) -> Path:
    """Write the model with the graph's tensors: same nodes, same names, same types.

    The model is `like`, an ONNX file, or else the one that the graph came from. Only tensors whose values
    changed are written anew; quantised ones are quantised again. External values go to a single
    new file beside the target, metadata to another. Raises `SourceError` where there is no such model, where
    it cannot hold the values, and where a file cannot be written.
    """
    model, stored = _updated_model(graph, target, like)
    data_path = _data_path(target)
    # Writing the data file sets the offsets in the model, so it comes first.
    data_write = (
        {data_path: lambda partial: _write_data(stored, partial, data_path.name)} if stored else {}
    )
    model_write = {target: lambda partial: partial.write_bytes(_serialize(model, target))}
    write_all({**data_write, **model_write, **sidecar_writes(target, metadata)})
    return target


def side_files(target: Path) -> list[Path]:
    """Return the files that `write` may write beside the target."""
    return [_data_path(target), sidecar(target)]


def check(graph: WeightGraph, target: Path, like: Any = None) -> None:
    """Raise what `write` would raise, without writing anything."""
    model, stored = _updated_model(graph, target, like)
    if not stored:
        _serialize(model, target)


def _updated_model(
    graph: WeightGraph, target: Path, like: Any
) -> tuple[ModelProto, list[StoredTensor]]:
    """Return the model with the graph's values, and the tensors whose values go to the external data file."""
    graph = _apply_template(like, graph, target)
    # Values are read from their file again and again, so it must stay what it is.
    if _data_path(target).exists():
        require_outputs([_data_path(target)], force=True, sources=files_read(graph)[1:])
    origin = next((m for m in _base_mappings(graph.tensors) if isinstance(m, OnnxTensors)), None)
    if graph.container != "onnx" or origin is None:
        raise SourceError(
            target,
            f"{graph.source} did not come from an ONNX file",
            "weights alone do not say how to compute",
            "export the module with torch.onnx.export",
        )
    model = ModelProto()
    model.CopyFrom(origin.model)
    inlined = inline_model(model, origin.files, Path(graph.source))
    sources = classify(inlined, Uses.of(inlined)).constants
    changed = [p.key for p in graph.params if _differs(graph.tensors, origin, p.key)]
    # The scale of a quantised bias depends on that of its weight, which is written first.
    for key in [*changed, *_dependent(sources, changed)]:
        sources[key].write(graph.tensors[key])
    _require_written(graph, model, origin, changed, sources, target)
    external = [x for x in _tensors(model) if is_external(x)]
    stored_by_id = {
        id(x.tensor): x for x in inlined.constants.values() if isinstance(x, StoredTensor)
    }
    return model, [
        stored_by_id.get(id(x)) or StoredTensor(x, graph.source, origin.files) for x in external
    ]


def _apply_template(like: Any, graph: WeightGraph, target: Path) -> WeightGraph:
    """Return the weights in the ONNX model `like`, whose nodes are reused; unchanged without `like`."""
    if like is None:
        return graph
    if (
        isinstance(like, str | Path)
        and Path(like).is_file()
        and str(like).lower().endswith(".onnx")
    ):
        like = read(require_file(Path(like)))
    if not isinstance(like, WeightGraph) or like.container != "onnx":
        name = like if isinstance(like, str | Path) else type(like).__name__
        raise SourceError(
            target,
            f"{name} is no ONNX file",
            "an ONNX file is written from the one it was read from",
            "give an ONNX file and --factory, or write a .safetensors file",
        )
    shapes = {p.key: p.shape for p in like.params}
    mismatched = [p.key for p in graph.params if shapes.get(p.key) != p.shape]
    if mismatched:
        raise SourceError(
            target,
            f"'{mismatched[0]}' has another shape than in {like.source}, or is not there",
            "the file keeps its nodes, so classes and channels must be those it has",
            "write a .safetensors file, and export the module anew",
        )
    return like.replace({param.key: tensor for param, tensor in graph.items()})


def _data_path(target: Path) -> Path:
    """Return the path of the external data file beside the model."""
    return target.with_name(f"{target.name}.data")


def _base_mappings(tensors: Mapping[str, torch.Tensor]) -> Iterator[Mapping[str, torch.Tensor]]:
    """Yield the mappings that replaced tensors are layered on, topmost first."""
    if isinstance(tensors, ChainMap):
        for part in tensors.maps:
            yield from _base_mappings(part)
    else:
        yield tensors


def _differs(tensors: Mapping[str, torch.Tensor], origin: OnnxTensors, key: str) -> bool:
    """Return whether a tensor was exchanged for one of other bits."""
    if not any(key in part for part in _base_mappings(tensors) if part is not origin):
        return False
    old, new = origin[key], tensors[key]
    if old.dtype != new.dtype:
        return True
    return not torch.equal(_bits(old), _bits(new))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    # A view as bytes needs a stride of 1, which `contiguous` does not guarantee for a single value.
    flat = tensor.detach().cpu().reshape(-1)
    return flat.clone(memory_format=torch.contiguous_format).view(torch.uint8)


def _dependent(sources: Mapping[str, Constant], changed: list[str]) -> list[str]:
    """Return the unchanged weights that share scales with a changed one, which may replace them."""
    names = {
        name
        for key in changed
        if isinstance(x := sources[key], QuantizedWeight)
        for name in x.settings
        if name
    }
    return [
        key
        for key, x in sources.items()
        if isinstance(x, QuantizedWeight) and key not in changed and names.intersection(x.settings)
    ]


def _require_written(
    graph: WeightGraph,
    model: ModelProto,
    origin: OnnxTensors,
    changed: list[str],
    sources: Mapping[str, Constant],
    target: Path,
) -> None:
    """Raise `SourceError` where a value was not stored, for example one that several calls share."""
    inlined = inline_model(model, origin.files, Path(graph.source))
    for key in changed:
        stored, weight, value = inlined.constants.get(key), sources[key], graph.tensors[key].cpu()
        if isinstance(weight, QuantizedWeight):
            is_written = weight.holds(value)
        elif not isinstance(stored, StoredTensor) or is_external(stored.tensor):
            continue  # written directly from the new values
        else:
            written = stored.read()
            is_written = torch.equal(written.nan_to_num(), value.to(written.dtype).nan_to_num())
        if not is_written:
            raise SourceError(
                f"{target}, {key!r}",
                "its new values have no place in the model",
                "a tensor that one place holds, in a type that holds them, is needed",
                "leave this tensor as it was, or write a file in floating point",
            )


def _tensors(message: Message) -> Iterator[TensorProto]:
    """Yield every tensor anywhere in a model."""
    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if field.is_repeated else [value]:
                yield from _tensors(part)


def _write_data(stored: list[StoredTensor], partial: Path, name: str) -> None:
    """Write values one after the other, reading one at a time, and record their location in the model."""
    with partial.open("wb") as file:
        for part in stored:
            data = part.data()
            offset = _pad_to_alignment(file)
            file.write(data)
            part.tensor.ClearField("external_data")
            part.tensor.ClearField("raw_data")
            part.tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", name), ("offset", offset), ("length", len(data))):
                part.tensor.external_data.add(key=key, value=str(value))


def _pad_to_alignment(file: BinaryIO) -> int:
    file.write(bytes(-file.tell() % _ALIGNMENT))
    return file.tell()


def _serialize(model: ModelProto, target: Path) -> bytes:
    try:
        data: bytes = model.SerializeToString()
    except (EncodeError, ValueError) as error:
        raise SourceError(
            target,
            f"it cannot be written ({error})",
            "a model that protobuf can hold is needed",
            "check that it is below 2 GiB",
        ) from error
    return data
