"""Tensors of files under the names of the plain module, whatever wrapped it when they were written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from sane_plugins.formats.dequantize import Content
from sane_plugins.weights import PlainNames


def rename_content(content: Content, names: PlainNames) -> Content:
    """Return the same content under its plain names."""
    return replace(
        content,
        tensors=_Renamed(content.tensors, names),
        described={names.of(key): x for key, x in content.described.items()},
        converted={names.of(key): how for key, how in content.converted.items()},
        unread={names.of(key): why for key, why in content.unread.items()},
    )


class _Renamed(Mapping[str, torch.Tensor]):
    """Tensors under their plain names."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], names: PlainNames) -> None:
        self._tensors = tensors
        self._stored = {names.of(key): key for key in tensors}

    def __getitem__(self, key: str) -> torch.Tensor:
        return self._tensors[self._stored[key]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)
