"""Quantised weights of other libraries: as they are stored, and what the library says their values are."""

from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open

FILE = Path(__file__).parent / "quantization" / "quantizers.safetensors"
State = dict[str, torch.Tensor]


@cache
def cases() -> dict[str, tuple[State, State]]:
    """Return the stored tensors and the right answer, by case."""
    found: dict[str, tuple[State, State]] = {}
    with safe_open(FILE, "pt") as file:
        for key in sorted(file.keys()):
            name, part, tensor = key.split("|")
            found.setdefault(name, ({}, {}))[part == "answer"][tensor] = file.get_tensor(key)
    return found
