"""Prompts in one form, whatever form they came in: their connections, and the order of layers and channels.

The method: docs/explanation/sane.md, section 10.4.
"""

from __future__ import annotations

from dataclasses import replace

from sane_plugins.generation.prompts import embedded_prompts
from sane_plugins.symmetry import canonical_form
from sane_plugins.weights import Param, WeightGraph


def connected_like(
    prompt: WeightGraph, target: WeightGraph, classifier: frozenset[str]
) -> WeightGraph:
    """Return a prompt without topology as a network connected like the target, where it is one.

    It is one if it has the target's tensors: all names, and all shapes but the classifier's.
    """
    if prompt.has_topology or not target.has_topology:
        return prompt
    own = {param.key: param for param in prompt.params}
    others = {param.key: param for param in target.params}
    if own.keys() != others.keys() or any(
        own[key].shape != other.shape and key not in classifier for key, other in others.items()
    ):
        return prompt

    def owned(param: Param) -> Param:
        return replace(param, shape=own[param.key].shape, dtype=own[param.key].dtype)

    layers = (replace(x, params=tuple(map(owned, x.params))) for x in target.layers)
    return replace(prompt, layers=tuple(layers))


def in_one_order(prompt: WeightGraph) -> WeightGraph:
    """Return a prompt with its channels in canonical order, those of the largest norm first.

    Where a narrower network takes some of them, it takes the strongest. Prompts that ship with the package
    keep the order that they ship in.
    """
    if prompt.source.startswith(f"{embedded_prompts().name}:"):
        return prompt
    return canonical_form(prompt, largest_first=True)
