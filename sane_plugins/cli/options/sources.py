"""Process several sources in one command: an unreadable one does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sane_plugins.cli.console import note
from sane_plugins.cli.options.trust import typed_trust
from sane_plugins.errors import SaneError, SourceError, UsageError

if TYPE_CHECKING:
    from sane_plugins.progress import Report
    from sane_plugins.weights import WeightGraph

T = TypeVar("T")


@dataclass(frozen=True)
class NamedNetwork:
    """A network to be read: the name under which it is told of, and how it is opened."""

    name: str
    open: Callable[[], WeightGraph]


def networks_of(
    sources: Sequence[str], open_source: Callable[[str], WeightGraph], factories: Sequence[str] = ()
) -> list[NamedNetwork]:
    """Return the networks that sources stand for: each itself, or all in a folder or a zoo.

    A folder that is one network (of Hugging Face, of MLflow, with a single file) is that. Of a zoo, our own
    architectures and what `factories` names are built. Raises `SourceError` for a folder without networks.
    """
    return [x for source in sources for x in _networks_of(source, open_source, factories)]


def _networks_of(
    source: str, open_source: Callable[[str], WeightGraph], factories: Sequence[str]
) -> Iterator[NamedNetwork]:
    from sane_plugins.formats import exists, locate
    from sane_plugins.zoo import is_zoo

    path = Path(source)
    if not (exists(source) and path.is_dir()):
        yield NamedNetwork(source, partial(open_source, source))
    elif is_zoo(path):
        yield from _networks_of_zoo(path, factories)
    else:
        try:
            is_one = locate(path) is not None
        except SourceError:  # of several networks, or none in the folder itself
            is_one = False
        if is_one:
            yield NamedNetwork(source, partial(open_source, source))
        else:
            yield from _networks_below(path, open_source, factories)


def _networks_of_zoo(folder: Path, factories: Sequence[str]) -> Iterator[NamedNetwork]:
    from sane_plugins.zoo import Zoo

    zoo = Zoo.open(folder, typed_trust(factories, everything=False))
    for entry in zoo.entries:
        yield NamedNetwork(f"{folder}/{entry.key}", partial(zoo.graph, entry))


def _networks_below(
    folder: Path, open_source: Callable[[str], WeightGraph], factories: Sequence[str]
) -> Iterator[NamedNetwork]:
    from sane_plugins.formats import may_be_network
    from sane_plugins.zoo import walk_folder

    contents = walk_folder(folder)
    files = [path for path in contents.files if may_be_network(path)]
    if not files and not contents.zoos:
        raise SourceError(
            folder,
            f"none of its {len(contents.files)} files is a network",
            "a folder of networks is needed",
            "name the folder that holds the files",
        )
    for zoo in contents.zoos:
        yield from _networks_of_zoo(zoo, factories)
    for path in files:
        yield NamedNetwork(str(path), partial(open_source, str(path)))
    if others := len(contents.files) - len(files):
        are = "file is no network" if others == 1 else "files are no networks"
        note(f"Note: {folder}: {others} other {are}.")


def process_networks(
    networks: Sequence[NamedNetwork],
    process: Callable[[WeightGraph], T],
    report: Report,
    job: str,
) -> tuple[dict[str, T], dict[str, SaneError]]:
    """Return what became of each network, and the errors of those that failed, told on stderr too.

    A wrong command (`UsageError`) is raised.
    """
    from sane_plugins.progress import Progress

    results: dict[str, T] = {}
    errors: dict[str, SaneError] = {}
    for i, network in enumerate(networks):
        report(Progress(job=job, done=i, total=len(networks), note=network.name))
        try:
            results[network.name] = process(network.open())
        except UsageError:
            raise
        except SaneError as error:
            note(f"Error: {error}")
            errors[network.name] = error
    report(Progress(job=job, done=len(networks), total=len(networks)))
    return results, errors


def process_each(
    sources: Sequence[str], process: Callable[[str], T]
) -> tuple[dict[str, T], list[str]]:
    """Return the results by source, and the sources that failed, whose errors go to stderr.

    Raises the error itself if there is only one source.
    """
    results: dict[str, T] = {}
    failed = []
    for source in sources:
        try:
            results[source] = process(source)
        except SaneError as error:
            if len(sources) == 1:
                raise
            note(f"Error: {error}")
            failed.append(source)
    return results, failed


def require_none_failed(failed: Iterable[str]) -> None:
    """Raise `SourceError`, and so exit with 1, if a source failed; for the end of a command."""
    if count := len([*failed]):
        raise SourceError(
            "sources",
            f"{count} could not be read",
            "all were asked for",
            "see the errors above",
        )
