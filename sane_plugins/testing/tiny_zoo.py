"""A zoo small enough to fit a head on within a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sane_plugins.zoo import Entry, Zoo

NETWORKS = 16


def write_tiny_zoo(folder: Path, networks: int = NETWORKS) -> Zoo:
    """Write a zoo of small CNNs into a new folder, the same in every run; return it.

    Each is drawn as torch draws it, and multiplied by a factor from 0.5 to 2: its property `scale`, which a
    head can be fitted on. None is trained.
    """
    from sane_plugins.zoo import write_zoo

    return write_zoo(folder, "tiny", _entries(networks))


def _entries(networks: int) -> Iterator[tuple[Entry, dict[str, torch.Tensor]]]:
    from sane_plugins.architectures import small_cnn
    from sane_plugins.runtime import random_stream, seeded
    from sane_plugins.zoo import Entry

    factory = {"name": "small_cnn", "channels_in": 1, "classes": 10, "act": "relu", "dropout": 0.0}
    for i in range(networks):
        scale = 0.5 * 4.0 ** (i / max(networks - 1, 1))
        with seeded(random_stream(i, "tiny zoo")):
            network = small_cnn(channels_in=1, classes=10)
        state = {name: tensor * scale for name, tensor in network.state_dict().items()}
        yield (
            Entry(network=f"n{i}", checkpoint="1", factory=factory, properties={"scale": scale}),
            state,
        )
