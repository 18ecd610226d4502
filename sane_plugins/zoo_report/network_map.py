"""A map of networks: their embeddings, brought to the two directions in which they differ most.

The embedding: docs/explanation/sane.md, section 20.6.

Legend: N networks, F numbers of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from sklearn.decomposition import PCA

from sane_plugins.fingerprints import PackedFingerprints


@dataclass(frozen=True, kw_only=True, eq=False)
class NetworkMap:
    """Places of networks by name, in units of the embedding; `share` of their variance is seen in them."""

    places: dict[str, tuple[float, float]] = field(default_factory=dict)
    share: float = 0.0


def map_networks(packed: Sequence[PackedFingerprints]) -> NetworkMap:
    """Lay out networks by the principal components of their embeddings (N, F)."""
    names = [name for one in packed for name in one.names]
    if not names:
        return NetworkMap()
    table = np.concatenate([one.embeddings for one in packed]).astype(np.float64)
    if not np.ptp(table, axis=0).any():  # one network, or copies of it
        return NetworkMap(places=dict.fromkeys(names, (0.0, 0.0)), share=1.0)
    found = PCA(n_components=2, svd_solver="full").fit(table)
    places = {
        name: (float(x), float(y))
        for name, (x, y) in zip(names, found.transform(table), strict=True)
    }
    return NetworkMap(places=places, share=float(found.explained_variance_ratio_.sum()))
