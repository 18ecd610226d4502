"""Writing initial weights in the container that they are asked for, with where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sane_plugins.errors import SourceError

if TYPE_CHECKING:
    import torch

    from sane_plugins.host import Host
    from sane_plugins.weights import WeightGraph

_NODES = ".onnx"


def require_writable(host: Host, graph: WeightGraph, model: str, output: Path) -> None:
    """Raise `SaneError` where no plugin writes such a network to such a file: before the work, not after."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        host.save(contained(host, graph, model, output), Path(folder) / output.name)


def contained(host: Host, graph: WeightGraph, model: str, output: Path) -> WeightGraph:
    """Return the weights in the ONNX model that they are for, where ONNX is asked for; else as they are.

    Raises `SourceError` where MODEL is no ONNX file with such tensors: weights have no nodes.
    """
    if output.suffix != _NODES:
        return graph
    if not (Path(model).is_file() and model.endswith(_NODES)):
        raise SourceError(
            output,
            f"{model} is no ONNX file",
            "an ONNX file is written from the one it was read from",
            "give an ONNX file and --factory, or write a .safetensors file",
        )
    nodes = host.open(model)
    shapes = {p.key: p.shape for p in nodes.params}
    other = [p.key for p in graph.params if shapes.get(p.key) != p.shape]
    if other:
        raise SourceError(
            output,
            f"'{other[0]}' has another shape than in {model}, or is not there",
            "the file keeps its nodes, so classes and channels must be those it has",
            "write a .safetensors file, and export the module anew",
        )
    return nodes.replace({param.key: tensor for param, tensor in graph.items()})


def write(
    host: Host,
    graph: WeightGraph,
    provenance: Mapping[str, Any],
    model: str,
    output: Path,
    force: bool,
) -> Path:
    """Write weights and their provenance: in the file where there is room for it, else beside it."""
    from sane_plugins.initialize import write_provenance

    path = host.save(contained(host, graph, model, output), output, force=force)
    return write_provenance(path, provenance)


def write_first_task(tensors: Mapping[str, torch.Tensor], path: Path) -> str:
    """Write what the first task of a pruned network needs beside the second's weights; say where."""
    from safetensors.torch import save_file

    from sane_plugins.atomic_files import write_whole

    first = path.with_name(f"{path.stem}.first-task.safetensors")
    write_whole(first, lambda partial: save_file(dict(tensors), partial))
    return f"with {first}, these weights give the first task's network again, bit for bit"
