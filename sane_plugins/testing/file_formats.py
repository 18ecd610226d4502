"""The contract of file formats."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sane_plugins.testing.contract import ContractError, in_threads, quiet, require_same
from sane_plugins.testing.example_networks import example_graphs
from sane_plugins.testing.light_import import check_light_import
from sane_plugins.testing.plugin_host import host_with, plugin_name, require_no_problem

if TYPE_CHECKING:
    from sane_plugins.host import Host
    from sane_plugins.weights import WeightGraph

_SAVES_AGAIN = "a network is saved, opened, saved and opened again"


def check_file_format(plugin: Any, suffix: str, files: Iterable[str | Path] = ()) -> None:
    """Raise `ContractError` unless a plugin reads, and perhaps writes, files of a suffix as hosts need it.

    It leaves what is not its own to others, reads what it wrote bit by bit, keeps roles and axes, writes
    nothing beside but what it names, does so in threads too, prints nothing, and imports neither torch
    nor numpy before it is asked for a file of its own. `files` are read twice; a plugin that writes
    needs none.
    """
    host, name = host_with(plugin), plugin_name(plugin)
    writes = any(x.plugin_name == name for x in host.pm.hook.sane_save.get_hookimpls())
    if not writes and not files:
        raise ContractError(f"plugin {name} writes nothing: give check_file_format some files")
    check_light_import(plugin)
    with TemporaryDirectory(prefix="sane-contract-") as folder, quiet(f"plugin {name}"):
        require_declining(host, name, Path(folder))
        for i, graph in enumerate(example_graphs() if writes else ()):
            _require_round_trip(host, name, graph, Path(folder) / f"{i}{suffix}")
        for path in files:
            _require_same_graph(_open(host, name, path), _open(host, name, path), "read again")
    require_no_problem(host.problems)


def require_declining(host: Host, name: str, folder: Path) -> None:
    """Raise `ContractError` unless a plugin of a host leaves to others what is not its own.

    `folder` takes the files that it is asked about.
    """
    from torch import nn

    (other := folder / "other.no-such-form").write_bytes(b"of another")
    module = nn.Linear(2, 2)
    foreign = {
        "a torch module": module,
        "a state dict": module.state_dict(),
        "the name of a network": "no-such-library:network",
        "a file of another form": other,
        "a path where nothing is": folder / "nothing.no-such-form",
        "a number": 3,
    }
    for what, source in foreign.items():
        _require_none(host, name, "sane_open", what, source=source)
    (graph, *_) = example_graphs()
    arguments = {"graph": graph, "metadata": None, "like": None}
    target = folder / "new.no-such-form"
    _require_none(host, name, "sane_save", "a target of another form", target=target, **arguments)


def _require_none(host: Host, name: str, hook: str, what: str, **arguments: Any) -> None:
    for reply in host.replies(hook, **arguments):
        if reply.plugin != name:
            continue
        if reply.error is not None:
            raise ContractError(
                f"plugin {name}, {hook}: it raises for {what} ({reply.error}), which is not its own:"
                " return None"
            ) from reply.cause
        if reply.answer is not None:
            raise ContractError(
                f"plugin {name}, {hook}: it answers for {what}, which is not its own: return None"
            )


def _require_round_trip(host: Host, name: str, graph: WeightGraph, path: Path) -> None:
    host.save(graph, path)
    allowed = {Path(x).name for x in host.planned_files(path)}
    beside = {x.name for x in path.parent.iterdir() if x.name.startswith(path.stem)} - allowed
    if beside:
        raise ContractError(
            f"plugin {name} writes {sorted(beside)[0]} too: name it in sane_side_files"
        )
    opened = _open(host, name, path)
    require_same(
        dict(sorted(opened.state_dict().items())),
        dict(sorted(graph.state_dict().items())),
        f"{graph.source} is not read as it was written",
        "keep every tensor, its name, type and shape, and every bit",
    )
    again = path.with_name(f"{path.stem}-again{path.suffix}")
    host.save(opened, again)
    _require_same_graph(_open(host, name, again), opened, _SAVES_AGAIN)
    copies = [path.with_name(f"{path.stem}-copy-{i}{path.suffix}") for i in range(8)]
    in_threads(lambda i: host.save(graph, copies[i]))
    for other in in_threads(partial(_open_one_of, host, name, copies)):
        _require_same_graph(other, opened, "files are written and read in several threads")


def _open_one_of(host: Host, name: str, paths: list[Path], i: int) -> WeightGraph:
    return _open(host, name, paths[i])


def _open(host: Host, name: str, path: str | Path) -> WeightGraph:
    """Open a file with the plugin alone; what it raises is raised."""
    for reply in host.replies("sane_open", source=path):
        if reply.plugin == name and reply.cause is not None:
            raise reply.cause
        if reply.plugin == name and reply.answer is not None:
            graph: WeightGraph = reply.answer
            return graph
    raise ContractError(f"plugin {name} does not open {Path(path).name}, which is its own")


def _require_same_graph(one: WeightGraph, other: WeightGraph, when: str) -> None:
    way_out = f"it changes when {when}"
    require_same(one.state_dict(), other.state_dict(), "a tensor", way_out)
    require_same(_described(one), _described(other), "a layer's kind, role or axis", way_out)


def _described(graph: WeightGraph) -> list[Any]:
    return [
        (layer.name, layer.kind, layer.inputs, [(x.key, x.role, x.axis) for x in layer.params])
        for layer in graph.layers
    ]
