"""Duplicate detection: a zoo's networks looked up by weight digest, regardless of names and format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from sane_plugins.zoo.index import Entry
from sane_plugins.zoo.shards import digest
from sane_plugins.zoo.store import Zoo

_VALUE_DIGITS = 32  # hex digits of a digest that hash the values alone, without names


class KnownNetworks:
    """Index of a zoo's entries by weight digest."""

    def __init__(self, zoo: Zoo) -> None:
        self._zoo = zoo
        self._names_by_key: dict[str, frozenset[str]] = {}
        self._by_value_digest: dict[str, dict[str, Entry]] = {}
        self._by_key: dict[str, Entry] = {}
        for entry in zoo.entries:
            # Zoos of version 1 have no digests.
            self.remember(entry if entry.digest else replace(entry, digest=self._digest(entry)))

    def remember(self, entry: Entry, keys: frozenset[str] | None = None) -> None:
        """Add an entry, or replace the one with the same key."""
        self._by_key[entry.key] = entry
        self._by_value_digest.setdefault(entry.digest[:_VALUE_DIGITS], {})[entry.key] = entry
        if keys is not None:
            self._names_by_key[entry.key] = keys

    def find(
        self, weight_digest: str, factory: Mapping[str, Any], weights: Mapping[str, torch.Tensor]
    ) -> Entry | None:
        """Return the entry that holds this network, or None.

        Equal values match under equal names, and under a different set of names (other file formats name
        tensors differently). They do not match if the same names are permuted, or if both factories are
        known and differ.
        """
        for entry in self._by_value_digest.get(weight_digest[:_VALUE_DIGITS], {}).values():
            factory_matches = (
                not factory or not entry.factory or dict(factory) == dict(entry.factory)
            )
            if factory_matches and (
                entry.digest == weight_digest or self._parameter_names(entry) != frozenset(weights)
            ):
                return entry
        return None

    def with_free_name(self, entry: Entry, weight_digest: str) -> Entry:
        """Return the entry, with a suffix on its checkpoint name if its key is taken."""
        number = 0
        original = entry.checkpoint
        while entry.key in self._by_key:
            suffix = "" if not number else f"-{number}"
            entry = replace(
                entry,
                checkpoint=f"{original}~{weight_digest[_VALUE_DIGITS : _VALUE_DIGITS + 8]}{suffix}",
            )
            number += 1
        return entry

    def _digest(self, entry: Entry) -> str:
        graph = self._zoo.graph(entry)
        return digest({param.key: graph.tensors[param.key] for param in graph.params})

    def _parameter_names(self, entry: Entry) -> frozenset[str]:
        if entry.key not in self._names_by_key:
            graph = self._zoo.graph(entry)
            self._names_by_key[entry.key] = frozenset(param.key for param in graph.params)
        return self._names_by_key[entry.key]
