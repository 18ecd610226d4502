"""Kinds of networks: those of one architecture, found from the shapes of their weights.

The method: docs/explanation/sane.md, section 9.4.
"""

from __future__ import annotations

import numpy as np

from sane_plugins.properties.regressors import Array

MAX_LOG2_SIZE_DIFFERENCE = 1.0
"""Networks of as many tensors are of one kind where sizes differ by no more, in log2."""


def find_kinds(structure: Array) -> Array:
    """Return the kind (N,) of networks by their structure (N, 3), kinds numbered from 0.

    Networks of a kind have as many matrices and vectors, and their sizes form a chain without a gap of
    more than a factor of 2.
    """
    order = np.lexsort(structure.T[::-1])
    step = np.diff(structure[order], axis=0)
    is_new = (step[:, :2] != 0).any(1) | (step[:, 2] > MAX_LOG2_SIZE_DIFFERENCE)
    kinds = np.zeros(len(structure), dtype=np.int64)
    kinds[order[1:]] = np.cumsum(is_new)
    return kinds


def is_alike(known: Array, structure: Array) -> Array:
    """Return for each known structure (S, 3) whether another (3,) is of its kind."""
    limits = np.array([0, 0, MAX_LOG2_SIZE_DIFFERENCE])
    return np.asarray((np.abs(known - structure) <= limits).all(1))
