"""Identity of tensors: in content (a hash), or in memory (the same storage)."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

import torch

from sane_plugins.quantization import is_wrapper


def tensor_digest(tensor: torch.Tensor) -> str:
    """Content hash of a tensor: SHA-256 of its type, shape and values, bit for bit."""
    digest = sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tensors_digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Content hash of named tensors: names, types, shapes and values, in order."""
    digest = sha256()
    for key, tensor in tensors:
        digest.update(f"{key} {tensor_digest(tensor)} ".encode(errors="surrogatepass"))
    return digest.hexdigest()[:32]


def memory_key(tensor: torch.Tensor) -> tuple[object, ...]:
    """Return a key that two tensors share exactly if they are the same view of the same memory."""
    plain = tensor.layout == torch.strided and not is_wrapper(tensor)
    if not plain or not tensor.numel() or tensor.is_meta:
        return (id(tensor),)
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
