"""What layer embeddings know of what WeightWatcher measures: alpha and spectral norm of each layer.

    python benchmarks/layers.py --data ../shared/data [--sane FILE]

The layers of the shared ResNet-20, -32 and -56 (CIFAR-10). Alpha is the exponent of a power law fitted to the
eigenvalues of a layer's correlation matrix and the spectral norm is the largest of them, both by weightwatcher
(`pip install 'sane-plugins[benchmarks]'`). Two networks fit ridge regression, its penalty chosen among them, and the
third is predicted, each in turn: from the mean latent of the layer and the four numbers of its scale, from the mean
latent alone, and from s(W), the layer's moments and quartiles. The other networks' layers are told by R^2 and
Spearman's rank correlation. Writes layers.json and .md in benchmarks/results/ and the figure docs/img/layers.png.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoodata
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from zoodata import RESULTS

from sane_plugins.architectures import build
from sane_plugins.autoencoder import fingerprint
from sane_plugins.features import EncodeOptions, SaneEncoder, slot_moments
from sane_plugins.properties.regressors import Array
from sane_plugins.weights import fit_scale, from_module

FILES = {
    "ResNet-20": (20, "resnet20-12fca82f.th"),
    "ResNet-32": (32, "resnet32-d509ac18.th"),
    "ResNet-56": (56, "resnet56-4bfd9763.th"),
}
FOLDER = Path("checkpoints") / "akamaster_pytorch_resnet_cifar10"
FIGURE = Path(__file__).parents[1] / "docs" / "img" / "layers.png"
TARGETS = ("alpha", "log10 spectral norm")
FEATURES = ("mean latent and scale", "mean latent", "s(W)")
PENALTIES = np.logspace(-2, 5, 15)


@dataclass(frozen=True)
class Layers:
    """The matrices of one network: features (M, F) by kind and targets (M,) by name, in network order."""

    features: Mapping[str, Array]
    targets: Mapping[str, Array]


def main() -> None:
    """Measure the three networks, print and write the table, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sane", type=Path, help="a SANE file; the embedded one by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, note = zoodata.sane(arguments.sane)
    encoder = SaneEncoder(model)
    networks = {
        name: measured(arguments.data / FOLDER / file, depth, encoder)
        for name, (depth, file) in FILES.items()
    }
    result = {
        "sane": fingerprint(model),
        "note": note,
        "layers": {name: len(found.targets["alpha"]) for name, found in networks.items()},
        "cells": {
            target: {kind: _predicted(networks, kind, target) for kind in FEATURES}
            for target in TARGETS
        },
    }
    (RESULTS / "layers.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "layers.md").write_text(table(result) + "\n")
    print(table(result))
    draw(networks, FIGURE)


def measured(file: Path, depth: int, encoder: SaneEncoder) -> Layers:
    """Return what WeightWatcher and the encoder say of each matrix of a network."""
    module = build({"name": "resnet", "depth": depth, "width": 16, "channels_in": 3, "classes": 10})
    stored = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict(
        {key.removeprefix("module."): value for key, value in stored.items()}, strict=False
    )
    told = _watched(module)
    graph = from_module(module)
    found = encoder.encode(graph, EncodeOptions(latents=False))
    side = fit_scale(graph).side.double().numpy()
    moments = np.stack(slot_moments(graph))
    rows = [i for i, name in enumerate(found.names) if name in told]
    latents = found.layers.double().numpy()[rows]
    return Layers(
        {
            "mean latent and scale": np.concatenate([latents, side[rows]], 1),
            "mean latent": latents,
            "s(W)": moments[rows],
        },
        {
            "alpha": np.array([told[found.names[i]][0] for i in rows]),
            "log10 spectral norm": np.log10([told[found.names[i]][1] for i in rows]),
        },
    )


def _watched(module: torch.nn.Module) -> dict[str, tuple[float, float]]:
    """Return alpha and spectral norm by the name of the weight."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that weightwatcher imports
        import weightwatcher

        logging.getLogger("weightwatcher").setLevel(logging.ERROR)
        table = weightwatcher.WeightWatcher(model=module).analyze()
    rows = zip(table["longname"], table["alpha"], table["spectral_norm"], strict=True)
    return {f"{name}.weight": (float(alpha), float(norm)) for name, alpha, norm in rows}


def _predicted(networks: Mapping[str, Layers], kind: str, target: str) -> dict[str, Any]:
    """Return R^2 and rank correlation for each network, fitted on the two others."""
    found: dict[str, Any] = {}
    for name, held in networks.items():
        others = [own for other, own in networks.items() if other != name]
        x = np.concatenate([own.features[kind] for own in others])
        y = np.concatenate([own.targets[target] for own in others])
        model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(x, y)
        told = np.clip(model.predict(held.features[kind]), y.min(), y.max())
        truth = held.targets[target]
        left = ((truth - told) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()
        found[name] = {"r2": float(1 - left), "rank": float(spearmanr(truth, told).statistic)}
    return found


def table(result: Mapping[str, Any]) -> str:
    """Return the markdown table: R^2 (rank correlation) of each held-out network."""
    names = list(result["layers"])
    lines = [
        "| of a layer | read from | "
        + " | ".join(f"{n} ({result['layers'][n]} layers)" for n in names)
        + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for target, kinds in result["cells"].items():
        for kind, cells in kinds.items():
            shown = [f"{cells[n]['r2']:.2f} (ρ {cells[n]['rank']:.2f})" for n in names]
            lines.append(f"| {target} | {kind} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def draw(networks: Mapping[str, Layers], path: Path) -> None:
    """Draw layer embeddings in two dimensions, coloured by depth, alpha and spectral norm."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    kind = "mean latent and scale"
    x = np.concatenate([own.features[kind] for own in networks.values()])
    at = PCA(2).fit_transform(StandardScaler().fit_transform(x))
    which = np.concatenate(
        [np.full(len(own.features[kind]), i) for i, own in enumerate(networks.values())]
    )
    depth = np.concatenate(
        [np.linspace(0, 1, len(own.features[kind])) for own in networks.values()]
    )
    colors = {
        "place in the network (0 first, 1 last)": depth,
        "alpha": np.minimum(
            np.concatenate([own.targets["alpha"] for own in networks.values()]), 10
        ),
        "log10 spectral norm": np.concatenate(
            [own.targets["log10 spectral norm"] for own in networks.values()]
        ),
    }
    figure, axes = plt.subplots(
        1, 3, figsize=(13, 4.4), sharex=True, sharey=True, layout="constrained"
    )
    for axis, (title, color) in zip(axes, colors.items(), strict=True):
        limits = {"vmin": color.min(), "vmax": color.max()}
        for i, (name, marker) in enumerate(zip(networks, "osD", strict=True)):
            own = which == i
            drawn = axis.scatter(
                *at[own].T,
                c=color[own],
                marker=marker,
                s=38,
                edgecolor="white",
                linewidth=0.5,
                cmap="viridis",
                label=name,
                **limits,
            )
        figure.colorbar(drawn, ax=axis, shrink=0.85)
        axis.set_title(f"coloured by {title}", fontsize=10)
        axis.set_xlabel("first principal component")
    axes[0].set_ylabel("second principal component")
    axes[0].legend(frameon=False, fontsize=9)
    figure.suptitle(
        "Embeddings of the layers of three ResNets: one point is one layer", fontsize=12
    )
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    main()
