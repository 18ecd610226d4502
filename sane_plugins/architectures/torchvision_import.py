"""Import torchvision, even where its compiled operators cannot be loaded."""

from __future__ import annotations

import logging
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from threading import Lock
from types import ModuleType
from typing import Any

import torch

from sane_plugins.architectures.names import is_bare_name, without_options
from sane_plugins.errors import SourceError
from sane_plugins.runtime import without_warnings

# torchvision registers fake implementations of these operators whether or not they were loaded.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# The schemas vanish with the object that declared them.
_libraries: list[torch.library.Library] = []
_log = logging.getLogger(__name__)
_importing = Lock()  # a failed import is taken back, which must not meet another one


def import_torchvision() -> ModuleType:
    """Return the torchvision module.

    Where its operators do not fit this torch (a CUDA build with a CPU torch), their schemas are
    declared, and a warning is logged once that detection models can be read but not run. Raises
    `SourceError` where torchvision is not installed or does not import.
    """
    with _importing:
        return _import_once()


def torchvision_fits() -> bool:
    """Return whether torchvision was built for this torch; where it was not, `import torchvision` fails.

    Raises what `import_torchvision` raises.
    """
    import_torchvision()
    return not _libraries


def torchvision_has(source: Any) -> bool:
    """Return whether a source is a name alone, without a prefix, that torchvision has; options may follow."""
    if not is_bare_name(source) or find_spec("torchvision") is None:
        return False
    return without_options(source) in import_torchvision().models.list_models()


@cache
def _import_once() -> ModuleType:
    try:
        return _import()
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise _import_failed(error) from error
    _discard_partial_import()
    _declare_schemas()
    try:
        module = _import()
    except RuntimeError as error:
        _discard_partial_import()
        raise _import_failed(error) from error
    _log.warning(
        "torchvision %s was built for another torch than %s: here its classification models work and its"
        " detection models cannot run, and 'import torchvision' of your own fails; install the torchvision"
        " that belongs to torch %s",
        module.__version__,
        torch.__version__,
        torch.__version__,
    )
    return module


def _import() -> ModuleType:
    try:
        # It warns without its own reader of image files, which are read by pillow here.
        with without_warnings():
            return import_module("torchvision")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "torchvision":
            raise SourceError(
                "torchvision",
                "it is not installed",
                "this network's code comes from it",
                "run pip install 'sane-plugins[torchvision]'",
            ) from error
        raise _import_failed(error) from error


def _discard_partial_import() -> None:
    """Drop what a failed import left behind, so that the next one starts afresh."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


def _declare_schemas() -> None:
    """Declare the schemas that are missing."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            library.define(schema)
    _libraries.append(library)


def _import_failed(error: Exception) -> SourceError:
    reason = " ".join(str(error).split())
    return SourceError(
        "torchvision",
        f"it does not import ({reason})",
        "one that fits this torch is needed",
        f"install the torchvision that belongs to torch {torch.__version__}",
    )
