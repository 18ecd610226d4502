"""The files that a command writes: named as files, and checked against all that it reads, before any work."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sane_plugins.atomic_files import require_outputs
from sane_plugins.errors import SaneError

if TYPE_CHECKING:
    from sane_plugins.host import Host


class OutputFile(click.Path):
    """The type of an option that names a file to write; `name/` names a folder, and is refused."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if str(value).endswith(tuple(filter(None, (os.sep, os.altsep)))):
            self.fail(f"'{value}' names a folder, and a file is written.", param, ctx)
        return super().convert(value, param, ctx)


def require_free_outputs(
    host: Host,
    outputs: Sequence[str | Path | None],
    force: bool,
    *,
    networks: Iterable[str | Path] = (),
    others: Iterable[str | Path | None] = (),
) -> None:
    """Raise `UsageError` unless a command that reads networks and other files may write all outputs."""
    planned = [path for path in outputs if path is not None]
    networks, other = list(networks), [part for path in others for part in _parts(path)]
    sources = [*networks, *other]
    if force and any(map(os.path.exists, planned)):
        # Only now it matters which further files a network names: they have to be opened for that.
        sources = [*(file for x in networks for file in _files_of(host, x)), *other]
    require_outputs(planned, force=force, sources=sources)


def _parts(source: str | Path | None) -> list[str | Path]:
    """Return a source, and the folder that ends a name such as `torchvision:MNIST:data`."""
    return [] if source is None else [source, str(source).rpartition(":")[2]]


def _files_of(host: Host, network: str | Path) -> Iterator[str | Path]:
    """Yield a network's file and those that it names; of a folder, those of its network."""
    from sane_plugins.formats import files_read, locate

    path = Path(network)
    with suppress(
        SaneError, OSError, ValueError
    ):  # reading it for its own sake tells what is wrong
        if path.is_file():
            yield from files_read(host.open(network))
        elif located := locate(network):
            path = located.path
            yield from files_read(host.open(path))
    yield path
