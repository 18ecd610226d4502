"""How far predictions move when networks are encoded in bfloat16 instead of float32; `speed.py` tells it.

The shipped heads read layer statistics, which have no precision to choose. So heads are fitted here on the
autoencoder's float32 features of published networks, and asked with both kinds of features of others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sane_plugins.autoencoder import Precision
from sane_plugins.features import EncodeOptions, SaneEncoder, structure
from sane_plugins.properties import Estimate, FeatureDataset, PropertyHead, fit_head
from sane_plugins.properties.dataset import STRUCTURE
from sane_plugins.properties.regressors import Array
from sane_plugins.weights import WeightGraph
from sane_plugins.zoo import import_published

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def noise(data: Path, fitted: int = 300, asked: int = 50) -> list[dict[str, Any]]:
    """Compare predictions from bfloat16 features with those from float32, against the interval's width."""
    rows = []
    for zoo_name in ("mnist-cnn", "cifar10-cnn"):
        zoo = import_published(data / "zoos" / f"{zoo_name}.json")
        zoo = zoo.where(lambda entry: bool(entry.properties["finite"]))
        order = np.random.default_rng(0).permutation(len(zoo))[: fitted + asked]
        entries = [zoo.entries[i] for i in order]
        wide, narrow = (_features([zoo.graph(e) for e in entries], p) for p in PRECISIONS)
        names = [entry.network for entry in entries]
        for name in ("test_accuracy", "epoch", "gap"):
            targets = np.array([float(entry.properties[name]) for entry in entries])
            samples = FeatureDataset(
                features={key: x[:fitted] for key, x in wide.items()}, networks=names[:fitted]
            )
            head = fit_head(name, samples, targets[:fitted])
            rest = range(fitted, len(entries))
            shift = _shift(_asked(head, wide, rest), _asked(head, narrow, rest), targets[fitted:])
            rows.append({"zoo": zoo_name, "property": name, **shift})
    return rows


def _features(graphs: Sequence[WeightGraph], precision: Precision) -> dict[str, Array]:
    encoder, options = SaneEncoder(), EncodeOptions(precision=precision)
    return {
        "sane": np.stack([encoder.features(graph, options).numpy() for graph in graphs]),
        STRUCTURE: np.stack([structure(graph) for graph in graphs]),
    }


def _asked(head: PropertyHead, features: Mapping[str, Array], which: range) -> list[Estimate]:
    return [head.estimate({key: x[i] for key, x in features.items()}) for i in which]


def _shift(wide: list[Estimate], narrow: list[Estimate], targets: Array) -> dict[str, Any]:
    """Tell how far estimates moved, how wide their intervals are, and how wrong both are on average."""
    pairs = list(zip(wide, narrow, strict=True))
    moved = np.array([abs(a.value - b.value) for a, b in pairs])
    size = np.array([a.interval[1] - a.interval[0] for a in wide])
    error = [
        np.abs(np.array([x.value for x in found]) - targets).mean() for found in (wide, narrow)
    ]
    return {
        "networks": len(pairs),
        "median_shift": float(np.median(moved)),
        "largest_shift": float(moved.max()),
        "median_interval": float(np.median(size)),
        "largest_shift_of_interval": float((moved / size).max()),
        "error_float32": float(error[0]),
        "error_bfloat16": float(error[1]),
        "known_kind_changed": sum(a.in_distribution != b.in_distribution for a, b in pairs),
    }
