"""A zoo: networks on disk, how to build them, and what was measured of them.

On disk a zoo is a folder with `index.json` and `weights.safetensors`, whose keys are
`<network>/<checkpoint>/<parameter>`. Checkpoints of one training run share `network`, so that splits
never put one run on both sides.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from sane_plugins.errors import UsageError, ZooError
from sane_plugins.weights.graph import WeightGraph
from sane_plugins.weights.modules import from_module
from sane_plugins.weights.writing import write_whole
from sane_plugins.zoo.architectures import build

VERSION = 1
Property = float | str | bool


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One checkpoint of one network: how to build it and what was measured of it."""

    network: str
    checkpoint: str
    factory: Mapping[str, Any]
    properties: Mapping[str, Property]

    @property
    def key(self) -> str:
        """Return the prefix of the entry's tensors."""
        return f"{self.network}/{self.checkpoint}"


@dataclass(frozen=True)
class Zoo:
    """Entries and the file that holds their tensors."""

    name: str
    entries: tuple[Entry, ...]
    weights: Path

    def __len__(self) -> int:
        return len(self.entries)

    @classmethod
    def open(cls, folder: str | Path) -> Zoo:
        """Open a zoo folder. Raises `ZooError` where there is none or its version is newer."""
        folder = Path(folder)
        index = _read_json(folder / "index.json")
        try:
            if index["version"] != VERSION:
                raise ValueError(f"version {index['version']}")
            entries = tuple(Entry(**record) for record in index["entries"])
            return cls(str(index["name"]), entries, folder / "weights.safetensors")
        except (KeyError, TypeError, ValueError) as error:
            raise ZooError(
                folder / "index.json", f"this is no whole index ({error})", f"version {VERSION} is needed",
                "import the zoo again with 'sane-plugins zoo import'",
            ) from error  # fmt: skip

    @property
    def networks(self) -> tuple[str, ...]:
        """Return the identities of the training runs, in order."""
        return tuple(dict.fromkeys(entry.network for entry in self.entries))

    def state_dict(self, entry: Entry) -> dict[str, torch.Tensor]:
        """Read one entry's tensors."""
        file, prefix = _tensors(self.weights), entry.key + "/"
        template = _template(json.dumps(dict(entry.factory)))
        try:
            return {name: file.get_tensor(prefix + name) for name in template.state_dict()}
        except SafetensorError as error:
            raise ZooError(
                f"{self.weights}, '{entry.key}'", f"a tensor is missing ({error})",
                "every entry needs all tensors of its architecture", "import the zoo again",
            ) from error  # fmt: skip

    def graph(self, entry: Entry) -> WeightGraph:
        """Return one entry as a graph with topology."""
        tensors = self.state_dict(entry)
        template = _template(json.dumps(dict(entry.factory)))
        owned = {param.key: tensors[param.key] for param in template.params}
        return replace(template.replace(owned), source=f"{self.name}:{entry.key}")

    def module(self, entry: Entry) -> nn.Module:
        """Return one entry as a runnable network in evaluation mode."""
        module = build(entry.factory)
        module.load_state_dict(self.state_dict(entry))
        return module.eval()

    def where(self, keep: Callable[[Entry], bool]) -> Zoo:
        """Return the zoo of the entries that `keep` accepts."""
        return replace(self, entries=tuple(entry for entry in self.entries if keep(entry)))

    def best(self, name: str, count: int) -> Zoo:
        """Return the `count` networks whose best checkpoint is highest in property `name`."""
        ranked = sorted(self.entries, key=lambda entry: -float(entry.properties[name]))
        first = {entry.network: entry for entry in reversed(ranked)}
        return replace(self, entries=tuple(e for e in ranked if first[e.network] is e)[:count])

    def split(self, fractions: Iterable[float], rng: torch.Generator) -> tuple[Zoo, ...]:
        """Split by network, never by checkpoint, into parts of these fractions (spec section 4)."""
        networks = self.networks
        order = [networks[i] for i in torch.randperm(len(networks), generator=rng).tolist()]
        parts, start = [], 0
        for end in _ends(fractions, len(order)):
            chosen = set(order[start:end])
            parts.append(self.where(lambda entry, chosen=chosen: entry.network in chosen))  # type: ignore[misc]
            start = end
        return tuple(parts)


def evaluation_pool(zoo: Zoo, fraction: float = 0.4, seed: int = 0) -> frozenset[str]:
    """Return the networks that the shipped SANE never sees, so that tests can draw from them."""
    pool, _ = zoo.split((fraction, 1 - fraction), torch.Generator().manual_seed(seed))
    return frozenset(pool.networks)


def write(
    folder: str | Path, name: str, items: Iterable[tuple[Entry, Mapping[str, torch.Tensor]]],
    force: bool = False,
) -> Zoo:  # fmt: skip
    """Write a zoo folder; the index comes last, so that a folder with one is complete."""
    folder = Path(folder)
    if (folder / "index.json").exists() and not force:
        raise UsageError(
            folder, "a zoo exists there already", "a new folder is needed",
            "name another folder or add --force",
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    tensors: dict[str, torch.Tensor] = {}
    for entry, state in items:
        entries.append(asdict(entry))
        copies = {key: value.detach().clone().contiguous() for key, value in state.items()}
        tensors |= {f"{entry.key}/{key}": value for key, value in copies.items()}
    index = json.dumps({"version": VERSION, "name": name, "entries": entries}, indent=1)
    write_whole(folder / "weights.safetensors", lambda partial: save_file(tensors, partial))
    write_whole(folder / "index.json", lambda partial: partial.write_text(index))
    return Zoo.open(folder)


def import_published(path: str | Path) -> Zoo:
    """Read a published zoo in place: `<name>.json` with one record per checkpoint, beside `<name>.safetensors`.

    Records name `model`, `epoch`, `act`, `p` (dropout) and measured properties; the architecture is
    `small_cnn` for the number of input channels that the weights have. Diverged networks
    (`finite` false) are kept: the caller decides.
    """  # noqa: E501
    path = Path(path)
    weights = path.with_suffix(".safetensors")
    records = _read_json(path)
    try:
        first = _tensors(weights).get_slice(f"{records[0]['model']}/{records[0]['epoch']}/0.weight")
        channels = first.get_shape()[1]
        entries = tuple(_published_entry(record, channels) for record in records)
    except (KeyError, TypeError, IndexError, SafetensorError) as error:
        raise ZooError(
            path, f"a record or tensor is missing ({error})",
            "records with model, epoch, act and p are needed, and their tensors",
            "check that the .json and .safetensors belong together",
        ) from error  # fmt: skip
    return Zoo(path.stem, entries, weights)


def _published_entry(record: Mapping[str, Any], channels: int) -> Entry:
    factory = {
        "name": "small_cnn", "channels_in": channels, "classes": 10,
        "act": record["act"], "dropout": record["p"],
    }  # fmt: skip
    properties = {key: value for key, value in record.items() if key != "model"}
    return Entry(
        network=str(record["model"]), checkpoint=str(record["epoch"]),
        factory=factory, properties=properties,
    )  # fmt: skip


def _ends(fractions: Iterable[float], total: int) -> list[int]:
    ends, part = [], 0.0
    for fraction in fractions:
        part += fraction
        ends.append(min(total, round(part * total)))
    return ends


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise ZooError(
            path, "there is no such file", "a zoo's index is needed",
            "check the path; 'sane-plugins zoo import' makes a zoo folder",
        )  # fmt: skip
    try:
        return json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ZooError(
            path, f"it cannot be read as JSON ({type(error).__name__})", "a zoo's index is needed",
            "check the path; 'sane-plugins zoo import' makes one",
        ) from error  # fmt: skip


def _tensors(path: Path) -> Any:
    try:
        return _opened(path, path.stat().st_mtime_ns)
    except (OSError, SafetensorError) as error:
        raise ZooError(
            path, f"the weights cannot be read ({error})", "a whole safetensors file is needed",
            "copy the zoo again",
        ) from error  # fmt: skip


@lru_cache(maxsize=8)
def _opened(path: Path, _modified: int) -> Any:
    """Open a file once; one that was replaced since is opened anew."""
    return safe_open(path, framework="pt")


@lru_cache(maxsize=64)
def _template(factory: str) -> WeightGraph:
    """Return an architecture's graph, traced once; only its tensors differ between entries."""
    return from_module(build(json.loads(factory)))
