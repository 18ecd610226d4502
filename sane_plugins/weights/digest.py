"""One name for the same tensor, wherever it lies."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

import torch


def tensor_digest(tensor: torch.Tensor) -> str:
    """Return a hash of a tensor's type, shape and values, bit for bit."""
    told = sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    told.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return told.hexdigest()


def tensors_digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return a hash of named tensors: names, types, shapes and values, in order."""
    digest = sha256()
    for key, tensor in tensors:
        digest.update(f"{key} {tensor_digest(tensor)} ".encode())
    return digest.hexdigest()[:32]
