"""What `sane-init` writes beside the initial weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def write_first_task(tensors: Mapping[str, torch.Tensor], path: Path) -> str:
    """Write what the first task of a pruned network needs beside the second's weights; say where."""
    from safetensors.torch import save_file

    from sane_plugins.atomic_files import write_whole

    first = path.with_name(f"{path.stem}.first-task.safetensors")
    write_whole(first, lambda partial: save_file(dict(tensors), partial))
    return f"with {first}, these weights give the first task's network again, bit for bit"
