"""Add a folder of checkpoints to a zoo, without duplicates, whatever their file format."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from sane_plugins.architectures import NO_TRUST, Trust
from sane_plugins.arguments import require_field_types
from sane_plugins.atomic_files import require_output_folder
from sane_plugins.display import ShortRepr
from sane_plugins.errors import SaneError, SourceError, UsageError, ZooError
from sane_plugins.formats import exists
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.weights import WeightGraph, widened
from sane_plugins.zoo.deduplicate import KnownNetworks
from sane_plugins.zoo.factories import weight_mismatch
from sane_plugins.zoo.folder_walk import walk_folder
from sane_plugins.zoo.index import Entry, ZooIndex, is_zoo, read_index
from sane_plugins.zoo.preparation import stored_preparation
from sane_plugins.zoo.run_names import RunName, name_by_number
from sane_plugins.zoo.shards import ShardWriter, digest
from sane_plugins.zoo.store import Zoo

_COMMIT_SECONDS = 10.0  # longest work that a kill may lose

Open = Callable[[Path], WeightGraph]


@dataclass(frozen=True, kw_only=True)
class AddOptions:
    """How to build the networks (`name` and arguments of a factory), and how to name runs from files.

    `factory` is the caller's own and is called; of what zoos below the folder name, only our architectures
    and the functions in `trust` are.
    """

    factory: Mapping[str, Any] = field(default_factory=dict)
    run_name: Callable[[str], RunName] = name_by_number
    trust: Trust = NO_TRUST

    def __post_init__(self) -> None:
        require_field_types(self)


@dataclass(eq=False, repr=False)
class Added(ShortRepr):
    """Outcome for each file, which is in exactly one of `added`, `already`, `equal` and `unread`.

    `already`: added by an earlier call. `equal` maps a file to the one it duplicates, `unread` and
    `unbuilt` map it to the reason, `partial` to the fraction that was read.
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
    """Add all networks of a folder to the zoo `out`, creating it if necessary.

    Files are opened with `open_`. A network that the zoo already holds, in any format, is not added again.
    The zoo is consistent at all times; after a kill the same call resumes. Raises `UsageError` if `folder`
    is not a folder, `ZooError` if no file could be read.
    """
    folder, out = Path(folder), Path(out)
    if not (exists(folder) and folder.is_dir()):
        raise UsageError(
            folder,
            "it is a file" if exists(folder) else "it does not exist",
            "a folder of checkpoints is needed",
            "name the folder that holds the files",
        )
    require_output_folder(out, [folder])
    result = Added()
    trust = _with_own_factory(options)
    appender = _ZooAppender(out, result, trust, options.run_name)
    sources = list(_find_sources(folder, out, open_, options, result, trust))
    appender.reserve(item.name for item in sources)
    for i, item in enumerate(sources):
        report(Progress(job="add networks", done=i, total=len(sources), note=item.source))
        try:
            appender.take(item)
        except SaneError as error:
            result.unread[item.place] = str(error)
    appender.finish()
    report(Progress(job="add networks", done=len(sources), total=len(sources)))
    if not (result.added or result.already or result.equal):
        reason = next(iter(result.unread.values()), "it holds no files").rstrip(".")
        count = max(len(sources), len(result.unread))
        raise ZooError(
            folder,
            f"none of its {count} files could be read (the first: {reason})",
            "at least one network is needed",
            "name the folder that holds the files",
        )
    return result


@dataclass(frozen=True)
class _Source:
    """A network to add: its source, its name, how to read and build it, and its place below the folder."""

    source: str
    place: str
    name: RunName
    read: Callable[[], WeightGraph]
    factory: Mapping[str, Any]


def _with_own_factory(options: AddOptions) -> Trust:
    """Return what the caller trusts: what was said, and the function that the caller names."""
    name = options.factory.get("name")
    names = options.trust.names | ({name} if isinstance(name, str) else set())
    return replace(options.trust, names=names)


def _find_sources(
    folder: Path, out: Path, open_: Open, options: AddOptions, result: Added, trust: Trust
) -> Iterator[_Source]:
    """Yield all networks below a folder, sorted by path: entries of zoos, then files.

    A zoo that cannot be read is recorded as unread.
    """
    root, found = folder.resolve(), walk_folder(folder, out)
    for zoo in found.zoos:
        place = (root.name / zoo.relative_to(folder)).as_posix()
        try:
            yield from _zoo_sources(Zoo.open(zoo, trust), place)
        except SaneError as error:
            result.unread[place] = str(error)
    for path in found.files:
        source = f"{root.name}/{path.relative_to(folder).as_posix()}"
        name = options.run_name(source)
        name = replace(name, properties={**name.properties, **stored_preparation(path)})
        yield _Source(source, source, name, partial(open_, path), options.factory)


def _zoo_sources(zoo: Zoo, place: str) -> Iterator[_Source]:
    for entry in zoo.entries:
        name = RunName(f"{zoo.name}/{entry.network}", entry.checkpoint, dict(entry.properties))
        source = f"{zoo.name}/{entry.key}"
        yield _Source(
            source, f"{place}/{entry.key}", name, partial(zoo.graph, entry), entry.factory
        )


class _ZooAppender:
    """A zoo being added to, committed every few seconds."""

    def __init__(
        self, out: Path, result: Added, trust: Trust, run_name: Callable[[str], RunName]
    ) -> None:
        self._result, self._trust = result, trust
        index = read_index(out) if is_zoo(out) else ZooIndex(out.resolve().name, (), {})
        self._writer = ShardWriter(out, index)
        self._known_networks = KnownNetworks(
            Zoo(index.name, index.entries, out, index.forms, self._trust)
        )
        self._templates = {e.network: run_name(e.source).template for e in index.entries}
        self._last_commit, self._has_changes = time.monotonic(), False

    def reserve(self, names: Iterable[RunName]) -> None:
        """Keep names for the networks of files that are called so as a whole."""
        for name in names:
            if name.template == name.network:
                self._templates.setdefault(name.network, name.template)

    def take(self, source: _Source) -> None:
        """Read a network and add it unless the zoo already holds it."""
        graph = source.read()
        _require_unicode(source.source, graph.tensors)
        weights = {param.key: graph.tensors[param.key] for param in graph.params}
        weight_digest = digest(weights)
        factory = self._checked_factory(source, graph)
        if (duplicate := self._known_networks.find(weight_digest, factory, weights)) is not None:
            if duplicate.source == source.source:
                self._result.already.append(source.source)
            else:
                self._result.equal[source.source] = duplicate.source or duplicate.key
            if factory and not duplicate.factory:
                self._set_factory(duplicate, factory, source.source)
        else:
            self._add(source, graph, weight_digest, factory)
        if graph.coverage < 1:
            self._result.partial[source.source] = graph.coverage
        if self._has_changes and time.monotonic() - self._last_commit > _COMMIT_SECONDS:
            self._commit()

    def finish(self) -> None:
        """Commit pending changes."""
        if self._has_changes:
            self._commit()

    def _checked_factory(self, source: _Source, graph: WeightGraph) -> Mapping[str, Any]:
        """Return the factory if it builds this network; otherwise record why and return an empty one."""
        if source.factory and (mismatch := weight_mismatch(source.factory, graph, self._trust)):
            self._result.unbuilt[source.source] = (
                f"it and what {source.factory['name']} builds {mismatch}"
            )
            return {}
        return source.factory

    def _add(
        self, source: _Source, graph: WeightGraph, weight_digest: str, factory: Mapping[str, Any]
    ) -> None:
        ties = dict(graph.ties)
        weights = {param.key: graph.tensors[param.key] for param in graph.params}
        buffers = {k: v for k, v in graph.tensors.items() if k not in weights and k not in ties}
        finite = all(bool(widened(x).isfinite().all()) for x in weights.values())
        entry = Entry(
            network=_as_unicode(self._network_of(source)),
            checkpoint=_as_unicode(source.name.checkpoint),
            factory=factory,
            properties={**source.name.properties, "finite": finite},
            source=source.source,
            container=graph.container,
        )
        entry = self._known_networks.with_free_name(entry, weight_digest)
        axes = {param.key: param.axis for param in graph.params if param.axis}
        entry = self._writer.add(entry, {**weights, **buffers}, ties, axes, weight_digest)
        self._known_networks.remember(entry, frozenset(weights))
        self._result.added.append(source.source)
        self._has_changes = True

    def _network_of(self, source: _Source) -> str:
        """Return what a file's network is called: by its template or path where others have the name."""
        template = source.name.template
        if not template:
            return source.name.network
        names = (source.name.network, template, source.source)
        free = (x for x in names if self._templates.setdefault(x, template) in (template, ""))
        return next(free, source.source)

    def _set_factory(self, entry: Entry, factory: Mapping[str, Any], source: str) -> None:
        self._writer.replace_entry(replace(entry, factory=factory))
        self._known_networks.remember(replace(entry, factory=factory))
        self._result.given_factory.append(source)
        self._has_changes = True

    def _commit(self) -> None:
        self._writer.commit()
        self._last_commit, self._has_changes = time.monotonic(), False


def _as_unicode(name: str) -> str:
    """Return a name as a part of keys: bytes that are no Unicode, as file names may have, are escaped."""
    return name.encode(errors="backslashreplace").decode()


def _require_unicode(source: str, keys: Iterable[str]) -> None:
    """Raise `SourceError` for the key of a tensor that safetensors cannot hold."""
    if odd := next((key for key in keys if _as_unicode(key) != key), None):
        raise SourceError(
            source,
            f"the name of its tensor '{odd}' is no Unicode text",
            "a zoo keeps tensors by their names",
            "rename it",
        )
