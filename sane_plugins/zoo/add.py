"""Add a folder of checkpoints to a zoo: each network once, whatever form it is stored in."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sane_plugins.arguments import require_field_types
from sane_plugins.display import ShortRepr
from sane_plugins.errors import SaneError, UsageError, ZooError
from sane_plugins.formats import INDEX
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.weights import WeightGraph
from sane_plugins.zoo.deduplicate import KnownNetworks
from sane_plugins.zoo.index import NAME, Entry, ZooIndex, is_zoo, read_index
from sane_plugins.zoo.run_names import RunName, name_by_number
from sane_plugins.zoo.shards import ShardWriter, digest
from sane_plugins.zoo.store import Zoo, weight_mismatch

_COMMIT_SECONDS = 10.0  # seconds of work that a kill may lose
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.[a-z]+$")

Open = Callable[[Path], WeightGraph]


@dataclass(frozen=True, kw_only=True)
class AddOptions:
    """How the networks are built (`name` and arguments of the function), and how a file names its run."""

    factory: Mapping[str, Any] = field(default_factory=dict)
    run_name: Callable[[str], RunName] = name_by_number

    def __post_init__(self) -> None:
        require_field_types(self)


@dataclass(eq=False, repr=False)
class Added(ShortRepr):
    """Result for each file; each is in one of `added`, `already`, `equal` and `unread`.

    `already`: it was added before. `equal` says which other file it equals, `unread` and
    `unbuilt` why; `partial` which share was read.
    """

    added: list[str] = field(default_factory=list)
    already: list[str] = field(default_factory=list)
    equal: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    unbuilt: dict[str, str] = field(default_factory=dict)
    partial: dict[str, float] = field(default_factory=dict)
    given_factory: list[str] = field(default_factory=list)


def add_networks(
    folder: str | Path, out: str | Path, open_: Open, options: AddOptions, report: Report = silent
) -> Added:
    """Add all networks of a folder to the zoo `out`, which is made where there is none.

    Files are opened by `open_`. A network that the zoo holds already, in whatever form, is not added again.
    The zoo is whole at any moment; after a kill the same call goes on. Raises `UsageError` where the folder
    is none, `ZooError` where no file could be read.
    """
    folder, out = Path(folder), Path(out)
    if not folder.is_dir():
        raise UsageError(
            folder,
            "it is a file" if folder.exists() else "it does not exist",
            "a folder of checkpoints is needed",
            "name the folder that holds the files",
        )
    done = Added()
    addition = _Addition(out, done)
    sources = list(_sources(folder, out, open_, options))
    for i, item in enumerate(sources):
        report(Progress(job="add networks", done=i, total=len(sources), note=item.source))
        try:
            addition.take(item)
        except SaneError as error:
            done.unread[item.source] = str(error)
    addition.finish()
    report(Progress(job="add networks", done=len(sources), total=len(sources)))
    if not (done.added or done.already or done.equal):
        reason = next(iter(done.unread.values()), "it holds no files")
        raise ZooError(
            folder,
            f"none of its {len(sources)} files could be read (the first: {reason.rstrip('.')})",
            "at least one network is needed",
            "name the folder that holds the files",
        )
    return done


@dataclass(frozen=True)
class _Source:
    """A network to add: where it is, what to call it, and how to read it."""

    source: str
    name: RunName
    read: Callable[[], WeightGraph]
    factory: Mapping[str, Any]


def _sources(folder: Path, out: Path, open_: Open, options: AddOptions) -> Iterator[_Source]:
    """Yield all networks below a folder in the order of their names: files, and entries of zoos."""
    root, own = folder.resolve(), out.resolve()
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and not _hidden(path, folder)
    )
    files = [path for path in files if not path.resolve().is_relative_to(own)]
    zoos = {path.parent for path in files if path.name == NAME}
    shards = {path.with_name(name) for path in files for name in _shards(path)}
    for zoo in sorted(zoos):
        yield from _entries(Zoo.open(zoo))
    for path in files:
        has_index = any(path.parent.glob(f"*{INDEX}"))
        if path.parent in zoos or path in shards or (has_index and _SHARD.search(path.name)):
            continue
        source = f"{root.name}/{path.relative_to(folder).as_posix()}"
        yield _Source(source, options.run_name(source), partial(open_, path), options.factory)


def _entries(zoo: Zoo) -> Iterator[_Source]:
    for entry in zoo.entries:
        name = RunName(f"{zoo.name}/{entry.network}", entry.checkpoint, dict(entry.properties))
        yield _Source(f"{zoo.name}/{entry.key}", name, partial(zoo.graph, entry), entry.factory)


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _shards(path: Path) -> list[str]:
    """Return the names of the files that an index names; of a broken one none, it will be told as such."""
    if not path.name.endswith(INDEX):
        return []
    try:
        names = json.loads(path.read_bytes())["weight_map"].values()
        return [name for name in names if isinstance(name, str) and Path(name).name == name]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []


class _Addition:
    """The zoo that is added to, committed every few seconds."""

    def __init__(self, out: Path, done: Added) -> None:
        self._done = done
        index = read_index(out) if is_zoo(out) else ZooIndex(out.resolve().name, (), {})
        self._writer = ShardWriter(out, index)
        self._known = KnownNetworks(Zoo(index.name, index.entries, out, index.forms))
        self._committed, self._changed = time.monotonic(), False

    def take(self, source: _Source) -> None:
        """Read a network, and add it unless the zoo has it."""
        graph = source.read()
        owned = {param.key: graph.tensors[param.key] for param in graph.params}
        values = digest(owned)
        factory = self._checked_factory(source, graph)
        if (twin := self._known.find(values, factory, owned)) is not None:
            if twin.source == source.source:
                self._done.already.append(source.source)
            else:
                self._done.equal[source.source] = twin.source or twin.key
            if factory and not twin.factory:
                self._set_factory(twin, factory, source.source)
        else:
            self._add(source, graph, values, factory)
        if graph.coverage < 1:
            self._done.partial[source.source] = graph.coverage
        if self._changed and time.monotonic() - self._committed > _COMMIT_SECONDS:
            self._commit()

    def finish(self) -> None:
        """Write what is left."""
        if self._changed:
            self._commit()

    def _checked_factory(self, source: _Source, graph: WeightGraph) -> Mapping[str, Any]:
        """Return the factory if it builds this network, else none, and say so."""
        if source.factory and (mismatch := weight_mismatch(source.factory, graph)):
            self._done.unbuilt[source.source] = (
                f"it and what {source.factory['name']} builds {mismatch}"
            )
            return {}
        return source.factory

    def _add(
        self, source: _Source, graph: WeightGraph, values: str, factory: Mapping[str, Any]
    ) -> None:
        ties = dict(graph.ties)
        owned = {param.key: graph.tensors[param.key] for param in graph.params}
        others = {k: v for k, v in graph.tensors.items() if k not in owned and k not in ties}
        finite = all(bool(_floats(x).isfinite().all()) for x in owned.values())
        entry = Entry(
            network=source.name.network,
            checkpoint=source.name.checkpoint,
            factory=factory,
            properties={**source.name.properties, "finite": finite},
            source=source.source,
            container=graph.container,
        )
        entry = self._known.with_free_name(entry, values)
        axes = {param.key: param.axis for param in graph.params if param.axis}
        entry = self._writer.add(entry, {**owned, **others}, ties, axes, values)
        self._known.remember(entry, frozenset(owned))
        self._done.added.append(source.source)
        self._changed = True

    def _set_factory(self, twin: Entry, factory: Mapping[str, Any], source: str) -> None:
        self._writer.replace_entry(replace(twin, factory=factory))
        self._known.remember(replace(twin, factory=factory))
        self._done.given_factory.append(source)
        self._changed = True

    def _commit(self) -> None:
        self._writer.commit()
        self._committed, self._changed = time.monotonic(), False


def _floats(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype.itemsize == 1 else tensor  # 8-bit floats
