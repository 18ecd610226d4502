"""MLflow's folders: which file or folder in them holds the network, by their file `MLmodel`.

`MLmodel` is YAML as MLflow writes it: nested mappings in block style. Only those are parsed; values that
are lists, texts over several lines or references are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sane_plugins.errors import SourceError
from sane_plugins.formats.guards import source_errors

MLMODEL = "MLmodel"
_MAX_BYTES = 4_000_000
_LINE = re.compile(r"( *)([\w.-]+):(?:[ \t]+(.*?))?[ \t]*")
_MAX_DEPTH = 20
# What a flavour calls the file or folder of its model, below the folder.
_PLACES = ("model_data", "model_binary", "pickled_model", "data", "model_path")
_GENERIC = "python_function"  # how any of the others is called


def network_place(folder: Path, text: str) -> tuple[str, str]:
    """Return the place of the network in a folder, and the library that wrote it.

    `text` is that of its file `MLmodel`. Raises `SourceError` where it names none.
    """
    flavors: dict[str, dict[str, str]] = {}
    for key_path, value in _settings(text):
        if len(key_path) == 3 and key_path[0] == "flavors":
            flavors.setdefault(key_path[1], {})[key_path[2]] = value
    named = {
        flavor: place
        for flavor, settings in flavors.items()
        if (place := next((settings[key] for key in _PLACES if settings.get(key)), ""))
    }
    library = next((flavor for flavor in named if flavor != _GENERIC), _GENERIC)
    if library not in named:
        raise SourceError(
            folder / MLMODEL,
            f"it names no file of weights (flavors: {', '.join(flavors) or 'none'})",
            "the folder of an MLflow model is needed",
            "log the model with mlflow.pytorch.log_model or mlflow.onnx.log_model",
        )
    return named[library], library


def read_mlmodel(path: Path) -> str:
    """Return the text of a file `MLmodel`. Raises `SourceError` where it is none."""
    with source_errors(path, "it is no text", f"a text of at most {_MAX_BYTES} bytes"):
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("it is too large")
        return path.read_text(encoding="utf-8")


def _settings(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the path of keys of each plain value, and the value."""
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        found = _LINE.fullmatch(line)
        if not found:
            continue
        indent = len(found[1])
        while above and above[-1][0] >= indent:
            above.pop()
        above.append((indent, found[2]))
        value = found[3] or ""
        if value and value[0] not in "[{|>&*!#" and len(above) <= _MAX_DEPTH:
            yield tuple(key for _, key in above), _unquoted(value)


def _unquoted(value: str) -> str:
    quoted = re.match(r"(['\"])(.*?)\1(?:\s+#.*)?$", value)
    return quoted[2] if quoted else value.partition(" #")[0].rstrip()
