"""Networks that a zoo holds already, looked up by their weights, whatever their names and form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from sane_plugins.zoo.index import Entry
from sane_plugins.zoo.shards import digest
from sane_plugins.zoo.store import Zoo

_HALF = 32  # digits of a digest that tell values, whatever their names


class KnownNetworks:
    """The entries of a zoo by their weights."""

    def __init__(self, zoo: Zoo) -> None:
        self._zoo = zoo
        self._keys: dict[str, frozenset[str]] = {}
        self._by_values: dict[str, dict[str, Entry]] = {}
        self._by_key: dict[str, Entry] = {}
        for entry in zoo.entries:
            # Zoos of version 1 have no digests.
            self.remember(entry if entry.digest else replace(entry, digest=self._digest(entry)))

    def remember(self, entry: Entry, keys: frozenset[str] | None = None) -> None:
        """Add an entry, or replace it by its new form."""
        self._by_key[entry.key] = entry
        self._by_values.setdefault(entry.digest[:_HALF], {})[entry.key] = entry
        if keys is not None:
            self._keys[entry.key] = keys

    def find(
        self, values: str, factory: Mapping[str, Any], owned: Mapping[str, torch.Tensor]
    ) -> Entry | None:
        """Return the entry that is this network, if there is one.

        The same values under the same names are, and so are those under other names (files of another
        form name them otherwise); the same values with names exchanged are not, nor is what is known to be
        built in another way.
        """
        for entry in self._by_values.get(values[:_HALF], {}).values():
            is_built_alike = (
                not factory or not entry.factory or dict(factory) == dict(entry.factory)
            )
            if is_built_alike and (
                entry.digest == values or self._names(entry) != frozenset(owned)
            ):
                return entry
        return None

    def with_free_name(self, entry: Entry, values: str) -> Entry:
        """Return the entry, under another checkpoint's name where its own is taken."""
        number = 0
        first = entry.checkpoint
        while entry.key in self._by_key:
            more = "" if not number else f"-{number}"
            entry = replace(entry, checkpoint=f"{first}~{values[_HALF : _HALF + 8]}{more}")
            number += 1
        return entry

    def _digest(self, entry: Entry) -> str:
        graph = self._zoo.graph(entry)
        return digest({param.key: graph.tensors[param.key] for param in graph.params})

    def _names(self, entry: Entry) -> frozenset[str]:
        if entry.key not in self._keys:
            graph = self._zoo.graph(entry)
            self._keys[entry.key] = frozenset(param.key for param in graph.params)
        return self._keys[entry.key]
