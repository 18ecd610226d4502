"""Networks that torch and Hugging Face (timm, transformers) keep on this machine; nothing is fetched."""

from __future__ import annotations

import os
from pathlib import Path

from sane_plugins.errors import SaneError
from sane_plugins.formats.in_folders.hub_cache import cache_folder, repositories_in
from sane_plugins.formats.suffixes import CHECKPOINTS

_WEIGHTS = (".safetensors", *CHECKPOINTS)


def cached_networks() -> list[str]:
    """Return the files in torch's cache and the names (`hf:org/name`) in Hugging Face's, by name."""
    return [*map(str, _torch_files()), *_hub_names()]


def torch_cache_folder() -> Path:
    """Return the folder of `torch.hub`'s downloads, by the variables that torch goes by."""
    variables = os.environ.get
    home = variables("TORCH_HOME") or str(Path(variables("XDG_CACHE_HOME") or "~/.cache") / "torch")
    return Path(home).expanduser() / "hub" / "checkpoints"


def _torch_files() -> list[Path]:
    try:
        found = sorted(torch_cache_folder().iterdir())
        return [x for x in found if x.suffix in _WEIGHTS and x.is_file()]
    except OSError:  # there is none, or it may not be read
        return []


def _hub_names() -> list[str]:
    try:
        return repositories_in(cache_folder()) if cache_folder().is_dir() else []
    except (SaneError, OSError):
        return []
