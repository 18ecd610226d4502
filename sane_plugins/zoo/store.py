"""A zoo: networks on disk, how to build them, and their measured properties.

On disk a zoo is a folder with `index.jsonl` and tensor files, whose keys are
`<network>/<checkpoint>/<parameter>`. Checkpoints of one training run share `network`, so that a split
never puts one run on both sides.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from sane_plugins.architectures import (
    NO_TRUST,
    Size,
    Trust,
    describe_call,
    require_trusted,
)
from sane_plugins.arguments import require_type
from sane_plugins.atomic_files import locked, naming, require_output_folder, require_outputs
from sane_plugins.display import html_table
from sane_plugins.errors import SaneError, SourceError, UsageError, ZooError, visible
from sane_plugins.formats import from_state_dict
from sane_plugins.weights import WeightGraph
from sane_plugins.zoo.factories import (
    SPARE,
    build_unseeded,
    load_state,
    size_limit,
    template_graph,
    tensor_names,
)
from sane_plugins.zoo.index import (
    NAME,
    OLD_NAME,
    OLD_WEIGHTS,
    Entry,
    Form,
    Property,
    ZooIndex,
    is_zoo,
    read_index,
    write_index,
)
from sane_plugins.zoo.published import read_published
from sane_plugins.zoo.shards import ShardWriter, open_tensors

_log = logging.getLogger(__name__)
_MOST_NAMES = 3  # of functions that a note names
_MOST_TENSORS = 10_000  # of a network whose tensors are yet to be read


@dataclass(frozen=True, repr=False)
class Zoo:
    """Entries and the folder that holds their tensors; `forms` describes their tensors by form name.

    `trust` says which functions that entries name may be called to build them, beside our architectures.
    """

    name: str
    entries: tuple[Entry, ...]
    folder: Path
    forms: Mapping[str, Form] = field(default_factory=dict, hash=False)
    trust: Trust = field(default=NO_TRUST, compare=False)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return (
            f"Zoo({self.name!r}, networks={len(self.networks)}, checkpoints={len(self.entries)},"
            f" folder={str(self.folder)!r})"
        )

    def _repr_html_(self) -> str:
        """Return the zoo as a table for notebooks: a row per checkpoint."""
        names = tuple(dict.fromkeys(name for entry in self.entries for name in entry.properties))
        rows = (
            (entry.network, entry.checkpoint, *(entry.properties.get(name, "") for name in names))
            for entry in self.entries
        )
        return html_table(repr(self), ("network", "checkpoint", *names), rows)

    @classmethod
    def open(cls, folder: str | Path, trust: Trust = NO_TRUST) -> Zoo:
        """Open a zoo folder. Raises `ZooError` if there is none or its version is newer.

        Nothing that its entries name is called unless it is one of our architectures or in `trust`.
        """
        require_type("Zoo.open, folder", folder, str, Path)
        require_type("Zoo.open, trust", trust, Trust)
        index = read_index(Path(folder))
        zoo = cls(index.name, index.entries, Path(folder), index.forms, trust)
        zoo._tell_what_is_trusted()
        return zoo

    @property
    def weights(self) -> Path:
        """Return the first tensor file."""
        return self.folder / (self.entries[0].file if self.entries else "")

    @property
    def networks(self) -> tuple[str, ...]:
        """Return the names of the training runs, in order."""
        return tuple(dict.fromkeys(entry.network for entry in self.entries))

    def state_dict(self, entry: Entry) -> dict[str, torch.Tensor]:
        """Read an entry's tensors, which are the caller's to change; tied names share one tensor."""
        path = self.folder / entry.file
        read, prefix = open_tensors(path), entry.key + "/"
        form = self.forms.get(entry.form)
        if form:
            keys = [key for key, _, _ in form.tensors]
        else:
            factory = self._trusted_factory(entry)
            # Its own tensors are yet to be known: at most all in the file, of a byte for each value.
            most = Size(path.stat().st_size + SPARE.values, _MOST_TENSORS)
            with self._about(entry):
                keys = [*tensor_names(factory, self.trust, most)]
        try:
            tensors = {name: read(prefix + name) for name in keys}
        except (SafetensorError, UnicodeEncodeError) as error:  # a name may be no Unicode
            raise ZooError(
                f"{path}, '{entry.key}'",
                f"a tensor is missing ({error})",
                "every entry needs all tensors of its architecture",
                "import the zoo again",
            ) from error
        return tensors | {alias: tensors[key] for alias, key in (form.ties if form else {}).items()}

    def graph(self, entry: Entry) -> WeightGraph:
        """Return an entry as a graph, with topology if its factory is known."""
        tensors, source = self.state_dict(entry), f"{self.name}:{entry.key}"
        if not entry.factory:
            form = self.forms[entry.form]
            return from_state_dict(tensors, source, ties=form.ties, axes=form.axes)
        specs = tuple((key, x.dtype, tuple(x.shape)) for key, x in tensors.items())
        factory = self._trusted_factory(entry)
        with self._about(entry):
            template = template_graph(factory, specs, self.trust)
        return replace(template, tensors={**template.tensors, **tensors}, source=source)

    def module(self, entry: Entry) -> nn.Module:
        """Return an entry as a runnable module in evaluation mode.

        Raises `ZooError` if its factory is unknown or builds a network with other weights.
        """
        if not entry.factory:
            raise ZooError(
                f"{self.name}:{entry.key}",
                "it was added without the function that builds it",
                "running a network needs one",
                "add it again with --factory package.module:function",
            )
        factory, state = self._trusted_factory(entry), self.state_dict(entry)
        most = size_limit(x.numel() for x in state.values())
        with self._about(entry):
            module = build_unseeded(factory, self.trust, most)
        load_state(module, state, f"{self.folder}, '{entry.key}'")
        return module.eval()

    def _trusted_factory(self, entry: Entry) -> str:
        """Return an entry's factory as JSON. Raises `SourceError` if it may not be called."""
        require_trusted(entry.factory, self.trust, f"{self.folder}, '{entry.key}'")
        return json.dumps(dict(entry.factory))

    @contextmanager
    def _about(self, entry: Entry) -> Iterator[None]:
        """Say of an error in the block which entry it is about."""
        try:
            yield
        except (SourceError, ZooError) as error:
            place = f"{self.folder}, '{entry.key}', {error.place}"
            raise ZooError(place, error.found, error.needed, error.way_out) from error

    def _tell_what_is_trusted(self) -> None:
        """Say which functions are called because all are trusted, before any is."""
        if not self.trust.everything:
            return
        calls: dict[str, str] = {}
        for entry in self.entries:
            try:
                require_trusted(entry.factory, NO_TRUST, self.folder)
            except SaneError:
                if entry.factory:
                    calls.setdefault(str(entry.factory.get("name")), describe_call(entry.factory))
        if calls:
            more = f", and {len(calls) - _MOST_NAMES} more" if len(calls) > _MOST_NAMES else ""
            shown = ", ".join(visible(call) for call in [*calls.values()][:_MOST_NAMES])
            folder = visible(str(self.folder))
            _log.warning("%s: trusted, so this is called: %s%s", folder, shown, more)

    def where(self, keep: Callable[[Entry], bool]) -> Zoo:
        """Return the zoo filtered to entries for which `keep` is true."""
        return replace(self, entries=tuple(entry for entry in self.entries if keep(entry)))

    def best(self, name: str, count: int) -> Zoo:
        """Return the best checkpoint of each of the `count` networks highest in property `name`."""
        measured = [entry for entry in self.entries if name in entry.properties]
        ranked = sorted(measured, key=lambda entry: -float(entry.properties[name]))
        best_entry = {entry.network: entry for entry in reversed(ranked)}
        return replace(self, entries=tuple(e for e in ranked if best_entry[e.network] is e)[:count])

    def split(self, fractions: Iterable[float], rng: torch.Generator) -> tuple[Zoo, ...]:
        """Split randomly by network, never by checkpoint, into parts of the given fractions.

        See docs/explanation/sane.md, section 4.1.
        """
        networks = self.networks
        order = [networks[i] for i in torch.randperm(len(networks), generator=rng).tolist()]
        parts, start = [], 0
        for end in _split_points(fractions, len(order)):
            chosen = set(order[start:end])
            parts.append(self.where(lambda entry, chosen=chosen: entry.network in chosen))  # type: ignore[misc]
            start = end
        return tuple(parts)


def evaluation_pool(zoo: Zoo, fraction: float = 0.4, seed: int = 0) -> frozenset[str]:
    """Return the networks held out from training the shipped SANE, for use in evaluation."""
    pool, _ = zoo.split((fraction, 1 - fraction), torch.Generator().manual_seed(seed))
    return frozenset(pool.networks)


def require_new_zoo(folder: Path, force: bool, sources: Iterable[str | Path] = ()) -> None:
    """Raise `UsageError` unless a run that reads `sources` may write a new zoo to a folder."""
    require_output_folder(folder, sources)
    if is_zoo(folder) and not force:
        raise UsageError(
            folder,
            "a zoo exists there already",
            "a new folder is needed",
            "name another folder or add --force",
        )
    if folder.is_dir():
        replaced = [folder / name for name in (NAME, OLD_NAME, OLD_WEIGHTS)]
        require_outputs(replaced, force=True, sources=sources)


def write_zoo(
    folder: str | Path,
    name: str,
    items: Iterable[tuple[Entry, Mapping[str, torch.Tensor]]],
    force: bool = False,
) -> Zoo:
    """Write a zoo folder atomically; an existing zoo stays until the new one is complete."""
    folder = Path(folder)
    require_new_zoo(folder, force)
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(folder, ZooIndex(name, (), {}))
    seen = set[str]()
    for entry, state in items:
        if entry.key in seen:
            raise ZooError(
                folder,
                f"two entries are called '{entry.key}'",
                "each needs a name of its own",
                "give them other networks or checkpoints",
            )
        seen.add(entry.key)
        writer.add(entry, state)
    writer.commit()
    return Zoo.open(folder)


def set_properties(folder: str | Path, found: Mapping[str, Mapping[str, Property]]) -> None:
    """Update entries' properties, given by entry key, in one atomic write."""
    with locked(Path(folder)):
        index = read_index(Path(folder))
        entries = tuple(
            replace(entry, properties={**entry.properties, **found.get(entry.key, {})})
            for entry in index.entries
        )
        write_index(Path(folder), replace(index, entries=entries))


def import_published(path: str | Path) -> Zoo:
    """Read a published zoo in place: `<name>.json` with one record per checkpoint, next to `<name>.safetensors`.

    Diverged networks (`finite` false) are kept; filtering is up to the caller.
    """  # noqa: E501
    path = Path(path)
    return Zoo(path.stem, read_published(path), path.parent)


def _split_points(fractions: Iterable[float], total: int) -> list[int]:
    ends, cumulative = [], 0.0
    for fraction in fractions:
        cumulative += fraction
        ends.append(min(total, round(cumulative * total)))
    return ends
