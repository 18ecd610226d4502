"""The contract of file formats."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from sane_plugins.errors import SaneError
from sane_plugins.plugins import AnswerError, describe_error
from sane_plugins.testing.channel_fit import find_misfit
from sane_plugins.testing.contract import ContractError, in_threads, is_same, quiet, require_same
from sane_plugins.testing.example_networks import example_graphs
from sane_plugins.testing.fresh_process import is_importable, save_in_a_fresh_process
from sane_plugins.testing.light_import import check_light_import
from sane_plugins.testing.plugin_host import host_with, plugin_name, require_no_problem

if TYPE_CHECKING:
    from sane_plugins.host import Host
    from sane_plugins.weights import WeightGraph

_SAVES_AGAIN = "a network is saved, opened, saved and opened again"


def check_file_format(plugin: Any, suffix: str, files: Iterable[str | Path] = ()) -> None:
    """Raise `ContractError` unless a plugin reads, and perhaps writes, files of a suffix as hosts need it.

    It leaves what is not its own to others, and gives graphs that hold together, whose channels fit and that
    can be encoded. It reads what it wrote bit by bit, with the layers where its form keeps them, and refuses
    in `sane_check_save` what the form cannot hold. It writes nothing beside but what it names, and the same
    bytes for the same network. All this in threads too; it prints nothing, and is imported quickly, without
    torch or numpy. `files` are read twice; a plugin that writes needs none.
    """
    host, name, paths = host_with(plugin), plugin_name(plugin), [*files]
    writes = any(x.plugin_name == name for x in host.pm.hook.sane_save.get_hookimpls())
    if not writes and not paths:
        raise ContractError(f"plugin {name} writes nothing: give check_file_format some files")
    check_light_import(plugin)
    with TemporaryDirectory(prefix="sane-contract-") as folder, quiet(f"plugin {name}"):
        require_declining(host, name, Path(folder))
        for i, graph in enumerate(example_graphs() if writes else ()):
            path = Path(folder) / f"{i}{suffix}"
            if not _is_refused(host, name, graph, path, is_plain=i == 0):
                _require_round_trip(host, name, graph, path)
        if writes and is_importable(plugin):
            _require_same_bytes_elsewhere(name, plugin, Path(folder), f"0{suffix}")
        for path in map(Path, paths):
            opened = _open(host, name, path)
            _require_same_graph(_open(host, name, path), opened, "read again")
            _embed(host, name, opened)
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


def _is_refused(host: Host, name: str, graph: WeightGraph, path: Path, *, is_plain: bool) -> bool:
    """Return whether a plugin says, before any work, that its form cannot hold a network."""
    arguments = {"graph": graph, "target": path, "like": None}
    replies = host.replies("sane_check_save", **arguments)
    cause = next((x.cause for x in replies if x.plugin == name and x.cause is not None), None)
    if cause is None:
        return False
    refusal = (
        f"plugin {name}, sane_check_save: it refuses a {graph.source} ({describe_error(cause)})"
    )
    if not isinstance(cause, SaneError) or is_plain:
        needed = "networks of float32" if is_plain else "a SaneError where the form cannot hold it"
        raise ContractError(f"{refusal}: {needed} is needed") from cause
    for reply in host.replies("sane_save", metadata=None, **arguments):
        if reply.plugin == name and not isinstance(reply.cause, SaneError):
            done = "writes it" if reply.cause is None else f"fails with {reply.error}"
            raise ContractError(f"{refusal}, and sane_save {done}: raise the same error in both")
    if path.exists():
        raise ContractError(f"{refusal}, and sane_save leaves a file: write nothing then")
    return True


def _save(host: Host, name: str, graph: WeightGraph, path: Path) -> None:
    try:
        host.save(graph, path)
    except SaneError as error:
        raise ContractError(
            f"plugin {name} does not save a {graph.source} ({error.place}: {error.found}): keep all that"
            " it holds, or raise a SaneError in sane_check_save and in sane_save"
        ) from error
    require_no_problem(host.problems)


def _require_round_trip(host: Host, name: str, graph: WeightGraph, path: Path) -> None:
    _save(host, name, graph, path)
    allowed = {Path(x).name for x in host.planned_files(path)}
    beside = {x.name for x in path.parent.iterdir() if x.name.startswith(path.stem)} - allowed
    if beside:
        raise ContractError(
            f"plugin {name} writes {sorted(beside)[0]} too: name it in sane_side_files"
        )
    opened = _open(host, name, path)
    require_same(
        _sorted(opened.state_dict()),
        _sorted(graph.state_dict()),
        f"plugin {name}: a {graph.source} is not read as it was written",
        "keep every tensor, its name, type and shape, and every bit, or raise a SaneError in"
        " sane_check_save",
    )
    _require_layers(name, opened, graph)
    embedding = _embed(host, name, opened)
    if _keeps_layers(opened, graph):
        require_same(
            embedding,
            _embed(host, name, graph),
            f"the embedding of a {graph.source} is another one when it was written and read",
            "keep layers, kinds, roles, axes, inputs, groups and dims",
        )
    _require_same_bytes(host, name, graph, path)
    again = path.with_name(f"{path.stem}-again{path.suffix}")
    host.save(opened, again)
    _require_same_graph(_open(host, name, again), opened, _SAVES_AGAIN)
    copies = [path.with_name(f"{path.stem}-copy-{i}{path.suffix}") for i in range(8)]
    in_threads(lambda i: host.save(graph, copies[i]))
    for other in in_threads(partial(_open_one_of, host, name, copies)):
        _require_same_graph(other, opened, "files are written and read in several threads")


def _require_layers(name: str, opened: WeightGraph, graph: WeightGraph) -> None:
    """Raise `ContractError` unless layers are as they were, or as names and shapes say them."""
    if _keeps_layers(opened, graph):
        require_same(
            _described(opened),
            _described(graph),
            f"plugin {name}: the layers of a {graph.source} are not read as they were written",
            "keep the kind, params, inputs, groups and dims of each",
        )
        return
    allowed = [_kinds(x) for x in (graph, *_inferred(graph))]
    for layer, found in _kinds(opened).items():
        needed = [x[layer] for x in allowed if layer in x]
        if needed and not any(is_same(found, x) for x in needed):
            require_same(
                found,
                needed[0],
                f"plugin {name}: layer {layer!r} of a {graph.source} is not read as it was written",
                "keep kinds, roles, axes and groups, or let from_state_dict tell them",
            )


def _inferred(graph: WeightGraph) -> list[WeightGraph]:
    """Return what may be made of a network's tensors alone."""
    from sane_plugins.formats import from_state_dict

    state, axes = graph.state_dict(), {x.key: x.axis for x in graph.params if x.axis}
    return [
        from_state_dict(state, graph.source, ties=ties, axes=told)
        for ties in (None, {}, graph.ties)
        for told in (None, axes)
    ]


def _keeps_layers(opened: WeightGraph, graph: WeightGraph) -> bool:
    """Return whether a form keeps layers: it has some that no tensor tells of."""
    told = {layer.name for layer in graph.layers if not layer.params}
    told -= {layer.name for inferred in _inferred(graph) for layer in inferred.layers}
    return any(layer.name in told for layer in opened.layers)


def _require_same_bytes(host: Host, name: str, graph: WeightGraph, path: Path) -> None:
    (other := path.parent / "later").mkdir(exist_ok=True)
    with _a_day_later():
        host.save(graph, other / path.name)
    for file in map(Path, host.planned_files(path)):
        if file.exists():
            _require_equal_files(name, file, other / file.name)


def _require_same_bytes_elsewhere(name: str, plugin: Any, folder: Path, file: str) -> None:
    (other := folder / "elsewhere").mkdir()
    save_in_a_fresh_process(plugin, other / file)
    _require_equal_files(name, folder / file, other / file)


def _require_equal_files(name: str, one: Path, other: Path) -> None:
    if not other.exists() or one.read_bytes() != other.read_bytes():
        raise ContractError(
            f"plugin {name} writes other bytes for the same network when it saves it again: leave out"
            " dates (zipfile.ZipInfo(name) has a fixed one), random names, and the order of sets"
        )


@contextmanager
def _a_day_later() -> Iterator[None]:
    """Let the clock say another day within the block: archives keep the time in steps of two seconds."""
    day = 86_400
    clock, clock_ns, local, utc = time.time, time.time_ns, time.localtime, time.gmtime

    def at(convert: Any, seconds: float | None = None) -> time.struct_time:
        struct: time.struct_time = convert(clock() + day if seconds is None else seconds)
        return struct

    with (
        patch("time.time", lambda: clock() + day),
        patch("time.time_ns", lambda: clock_ns() + day * 10**9),
        patch("time.localtime", partial(at, local)),
        patch("time.gmtime", partial(at, utc)),
    ):
        yield


def _open_one_of(host: Host, name: str, paths: list[Path], i: int) -> WeightGraph:
    return _open(host, name, paths[i])


def _open(host: Host, name: str, path: str | Path) -> WeightGraph:
    """Open a file with the plugin alone, and read all of it; what it raises is raised."""
    for reply in host.replies("sane_open", source=path):
        if reply.plugin == name and isinstance(reply.cause, AnswerError):
            raise ContractError(f"plugin {name}, sane_open: {reply.error}") from reply.cause
        if reply.plugin == name and reply.cause is not None:
            raise reply.cause
        if reply.plugin == name and reply.answer is not None:
            graph: WeightGraph = reply.answer
            _require_whole(name, graph)
            return graph
    raise ContractError(f"plugin {name} does not open {Path(path).name}, which is its own")


def _require_whole(name: str, graph: WeightGraph) -> None:
    """Raise `ContractError` unless the tensors, once read, are as described, and channels fit."""
    from sane_plugins.weights import stored_fault

    faults = (stored_fault(param, tensor) for param, tensor in graph.items())
    fault = next(filter(None, faults), None) or find_misfit(graph)
    if fault is not None:
        raise ContractError(f"plugin {name}, sane_open: its graph is wrong: {fault}")


def _embed(host: Host, name: str, graph: WeightGraph) -> Any:
    try:
        return host.encode(graph).embedding
    except Exception as error:
        raise ContractError(
            f"plugin {name}: what it reads cannot be encoded ({describe_error(error)})"
        ) from error


def _require_same_graph(one: WeightGraph, other: WeightGraph, when: str) -> None:
    way_out = f"it changes when {when}"
    require_same(one.state_dict(), other.state_dict(), "a tensor", way_out)
    require_same(_described(one), _described(other), "a layer", way_out)


def _described(graph: WeightGraph) -> Mapping[str, Any]:
    return {
        layer.name: {
            "kind": layer.kind,
            "inputs": layer.inputs,
            "groups": layer.groups,
            "dims": layer.dims,
            "params": _sorted({x.key: {"role": x.role, "axis": x.axis} for x in layer.params}),
        }
        for layer in sorted(graph.layers, key=lambda layer: layer.name)
    }


def _kinds(graph: WeightGraph) -> Mapping[str, Any]:
    """Return what is said of each layer with tensors, apart from how they are connected."""
    return {
        layer.name: {
            "kind": layer.kind,
            "groups": layer.groups,
            "params": _sorted({x.key: {"role": x.role, "axis": x.axis} for x in layer.params}),
        }
        for layer in graph.layers
        if layer.params
    }


def _sorted(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(values.items()))
