"""What `config.json` beside weights says of their network: the name by timm, transformers or diffusers.

Only names are taken from it, and only to be told or compared; nothing is built by its word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sane_plugins.errors import SourceError
from sane_plugins.formats.guards import exists
from sane_plugins.formats.in_folders.folder_members import stays_inside
from sane_plugins.formats.limits import parse_json

_MAX_BYTES = 2**20
_NAME = re.compile(r"[\w.:/-]{1,200}")


def declared_architecture(path: str | Path) -> str | None:
    """Return timm's name of the network in a file or folder, such as `resnet18.a1_in1k`.

    It is what timm writes into `config.json` there; None where none says so.
    """
    config = _config(Path(path), "config.json")
    name = _text(config, "architecture")
    tag = _text(_mapping(config.get("pretrained_cfg")), "tag")
    return f"{name}.{tag}" if name and tag and "." not in name else name or None


def declared_settings(path: str | Path) -> Mapping[str, Any]:
    """Return what lies beside a file, or in a folder: `config.json`, and how images are prepared.

    `preprocessor` is the object in transformers' `preprocessor_config.json`. Everything is a stranger's word.
    """
    preprocessor = _config(Path(path), "preprocessor_config.json")
    return {**_config(Path(path), "config.json"), "preprocessor": preprocessor}


def declarations(path: Path) -> Iterator[str]:
    """Yield what the files beside a network's file, or in its folder, say that it is."""
    config, adapter = _config(path, "config.json"), _config(path, "adapter_config.json")
    classes = config.get("architectures")
    name = _text({"name": classes[0]}, "name") if isinstance(classes, list) and classes else ""
    timm_name = declared_architecture(path)
    if timm_name:
        yield f"declared as {timm_name} (timm)"
    elif name or _text(config, "model_type"):
        kind = _text(config, "model_type")
        yield f"declared as {name or kind} (transformers{f', {kind}' if name and kind else ''})"
    elif class_name := _text(config, "_class_name"):
        yield f"declared as {class_name} (diffusers)"
    if base := _text(adapter, "base_model_name_or_path"):
        yield f"declared as an adapter (peft) of {base}, whose own weights are not in this file"


def _config(path: Path, name: str) -> Mapping[str, Any]:
    """Return the JSON object in a file beside a file, or in a folder; empty where there is no such."""
    if not exists(path):  # what a graph comes from need not be a file
        return {}
    try:
        folder = path if path.is_dir() else path.parent
        config = folder / name
        if not config.is_file() or config.stat().st_size > _MAX_BYTES or not stays_inside(config):
            return {}
        return _mapping(parse_json(config, config.read_bytes()))
    except (OSError, ValueError, SourceError):  # what is told by the way stops no reading
        return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(config: Mapping[str, Any], key: str) -> str:
    """Return a name; empty where it is none."""
    value = config.get(key)
    return value if isinstance(value, str) and _NAME.fullmatch(value) else ""
