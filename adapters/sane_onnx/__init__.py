"""ONNX files as networks: read without running anything, written back with the same nodes.

PYTEST_DONT_REWRITE: our fixtures for pytest make it warn of packages that were imported before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sane_plugins import hookimpl

if TYPE_CHECKING:
    from sane_plugins.cost import CostOptions, NetworkCost
    from sane_plugins.weights import WeightGraph

SUFFIX = ".onnx"


@hookimpl
def sane_open(source: Any) -> WeightGraph | None:
    """Read an ONNX file. Raises `SourceError` where it is broken, or names other files to read."""
    if not isinstance(source, str | Path) or not _holds_onnx(source):
        return None
    from sane_plugins.formats import require_file

    path = require_file(Path(source))
    _require_onnx(source)
    from sane_onnx.read import read

    return read(path)


@hookimpl
def sane_cost(source: Any, options: CostOptions | None) -> NetworkCost | None:
    """Count what running an ONNX file takes, from its nodes and shapes. Nothing runs."""
    if not isinstance(source, str | Path) or not _holds_onnx(source):
        return None
    from sane_plugins.cost import CostOptions
    from sane_plugins.formats import require_file

    path = require_file(Path(source))
    _require_onnx(source)
    from sane_onnx.costs import count_cost

    return count_cost(path, options or CostOptions())


@hookimpl
def sane_save(
    graph: WeightGraph, target: Path, metadata: Mapping[str, Any] | None, like: Any
) -> Path | None:
    """Write weights with the nodes of `like`, or of the ONNX file that they came from.

    Raises `SourceError` where there are no such nodes, or where the weights do not fit them.
    """
    if not _is_ours(target):
        return None
    _require_onnx(target)
    from sane_onnx.write import write

    return write(graph, Path(target), metadata, like)


@hookimpl
def sane_side_files(target: Path) -> list[Path] | None:
    """Return the file of values and that of the provenance, which may lie beside the model."""
    if not _is_ours(target):
        return None
    _require_onnx(target)
    from sane_onnx.write import side_files

    return side_files(target)


@hookimpl
def sane_check_save(graph: WeightGraph, target: Path, like: Any) -> bool | None:
    """Raise what `sane_save` would raise, without writing anything."""
    if not _is_ours(target):
        return None
    _require_onnx(target)
    from sane_onnx.write import check

    check(graph, Path(target), like)
    return True


def _holds_onnx(source: str | Path) -> bool:
    """Tell whether a file is a model: it begins as one, or has our suffix and begins as nothing else."""
    from sane_plugins.formats import content_form, exists, holds_onnx

    if not _is_ours(source):
        return holds_onnx(Path(source))
    is_file = exists(source) and Path(source).is_file()
    return not is_file or content_form(Path(source)) is None


def _is_ours(path: str | Path) -> bool:
    return str(path).lower().endswith(SUFFIX)


def _require_onnx(place: str | Path) -> None:
    if find_spec("onnx") is None:
        from sane_plugins.errors import SourceError

        raise SourceError(
            place,
            "the package onnx is not installed",
            "ONNX files need it",
            "run pip install 'sane-plugins[onnx]'",
        )
