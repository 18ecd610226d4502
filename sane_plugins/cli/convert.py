"""`sane-plugins convert`: write a network in another form, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sane_plugins import __version__
from sane_plugins.cli.console import command_options, note, open_host, print_json, print_line
from sane_plugins.cli.options.factories import Opener, factory_option
from sane_plugins.cli.options.outputs import OutputFile, require_free_outputs
from sane_plugins.errors import SourceError, UsageError

if TYPE_CHECKING:
    import torch

    from sane_plugins.host import Host
    from sane_plugins.weights import WeightGraph

KEY = "conversion"  # of a file's metadata
_ONNX = ".onnx"
_SHOWN = 4


@click.command()
@click.argument("source")
@click.option(
    "-o",
    "--output",
    type=OutputFile(),
    required=True,
    help="Where to write the network (.safetensors, .pt, .npz, or .onnx).",
)
@click.option(
    "--like",
    help="The ONNX file whose nodes an .onnx output keeps. Default: the one that SOURCE came from.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Round the weights to this type. Default: each keeps its own.",
)
@click.option(
    "--partial", is_flag=True, help="Convert what was read where not all of SOURCE could be."
)
@click.option("--force", is_flag=True, help="Replace the output file if it exists.")
@factory_option
@command_options
def convert(
    source: str,
    output: Path,
    like: str | None,
    dtype: str | None,
    partial: bool,
    force: bool,
    factories: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write a network in another form: the same names, the same values, bit for bit.

    What a quantised file computes with is written in floating point. The output tells where it comes from.
    """
    _require_options(output, like, dtype)
    host = open_host()
    open_source = Opener(host, factories)
    networks = [source, *([like] if like else [])]
    require_free_outputs(host, host.planned_files(output), force, networks=networks)
    graph = open_source(source)
    _require_read(graph, source, partial)
    record = _record(graph, source)
    notes = [*graph.notes]
    if output.suffix.lower() == _ONNX:
        graph, notes = _in_onnx(host, graph, like or _origin(source), notes)
    else:
        graph, notes = _as_plain(graph, notes)
    if dtype is not None:
        graph, notes = _rounded(graph, dtype, notes)
    record |= {"dtype": dtype, "notes": notes}
    host.check_save(graph, output, force=force)
    path = host.save(graph, output, metadata={KEY: record}, force=force)
    if as_json:
        print_json(
            {"output": str(path), "tensors": len(graph.params), "values": graph.size, **record}
        )
        return
    for text in notes:
        note(f"Note: {text}.")
    print_line(f"Written to {path}: {len(graph.params):,} tensors, {graph.size:,} values.")


def _require_options(output: Path, like: str | None, dtype: str | None) -> None:
    is_onnx = output.suffix.lower() == _ONNX
    if like is not None and not is_onnx:
        raise UsageError(
            "--like",
            f"{output} is no ONNX file",
            "only these keep the nodes of another",
            "leave it out, or name an .onnx file",
        )
    if dtype is not None and is_onnx:
        raise UsageError(
            "--dtype",
            "an ONNX file keeps its types",
            "its nodes are made for them",
            "leave it out, or write a .safetensors file",
        )


def _require_read(graph: WeightGraph, source: str, partial: bool) -> None:
    from sane_plugins.inspection import percent

    if graph.missed and not partial:
        key = next(iter(graph.missed))
        raise SourceError(
            source,
            f"{percent(graph.coverage)} of its weights could be read, not '{key}'"
            f" ({graph.untouched.get(key, 'unknown')})",
            "a whole network is converted",
            "give --partial to convert what was read; 'sane-plugins inspect' tells what was not",
        )


def _record(graph: WeightGraph, source: str) -> dict[str, Any]:
    """Return where the output comes from; it holds no times and no folders of the machine."""
    from sane_plugins.formats import exists, files_read, read_metadata

    is_file = graph.container != "module"
    files = [path for path in files_read(graph) if path.is_file()] if is_file else []
    told: Mapping[str, Any] = {}
    with suppress(SourceError):  # what is broken there says nothing
        told = read_metadata(files[0]) if files else {}
    return {
        "source": Path(source).name if exists(source) else source,
        "sha256": {path.name: _sha256(path) for path in files},
        "container": graph.container,
        "coverage": graph.coverage,
        "converted": dict(graph.converted),
        "missed": dict(graph.missed),
        "origin": {key: x for key, x in told.items() if key not in ("keys", "ties", "axes")},
        "versions": {"sane-plugins": __version__},
    }


def _sha256(path: Path) -> str:
    from sane_plugins.formats import source_errors

    digest = sha256()
    with source_errors(path), path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _as_plain(graph: WeightGraph, notes: list[str]) -> tuple[WeightGraph, list[str]]:
    """Return the network with what a file of tensors takes, and notes on what that does not have as it was.

    Settings of a program's operators are no part of a network's state. What could not be read is carried over
    as it is stored, where it can be.
    """
    missed = {key: count for key, count in graph.missed.items() if key in graph.tensors}
    written = graph.stored_state()
    if graph.container == "onnx":
        keys = [*(param.key for param in graph.params), *missed]
        tensors = {key: graph.tensors[key] for key in keys}
        graph, written = replace(graph, tensors=tensors), replace(written, tensors=tensors)
    plain: dict[str, list[str]] = {}
    for key, how in graph.converted.items():
        if key not in written.main_names:  # others have their own form again
            plain.setdefault(how, []).append(key)
    notes = [*notes, *(f"{_names(keys)}: {how}" for how, keys in plain.items())]
    if missed:
        notes.append(f"{_names([*missed])}: not understood, and written as stored")
    if lost := [x for x in graph.untouched if x not in written.tensors and x not in written.ties]:
        notes.append(f"{_names(lost)}: not written")
    return replace(graph, missed=missed), notes


def _names(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(f"'{key}'" for key in keys[:_SHOWN]) + more


def _rounded(graph: WeightGraph, dtype: str, notes: list[str]) -> tuple[WeightGraph, list[str]]:
    import torch

    from sane_plugins.formats import with_dtype

    graph, rounding = with_dtype(graph, getattr(torch, dtype))
    if not rounding.tensors:
        return graph, [*notes, f"all values are the same in {dtype}"]
    text = f"{rounding.tensors} tensor(s) are rounded to {dtype}, by {rounding.largest:.1e} at most"
    return graph, [*notes, text]


# ONNX


def _origin(source: str) -> str | None:
    """Return the ONNX file beside SOURCE that it was converted from, if its bytes are the same."""
    from sane_plugins.formats import exists, read_metadata

    path = Path(source)
    if not exists(source) or not path.is_file() or path.suffix.lower() == _ONNX:
        return None
    told = read_metadata(path).get(KEY)
    hashes = told.get("sha256") if isinstance(told, Mapping) else None
    for name, digest in hashes.items() if isinstance(hashes, Mapping) else ():
        beside = path.with_name(Path(str(name)).name)
        if beside.suffix.lower() == _ONNX and beside.is_file() and _sha256(beside) == digest:
            return str(beside)
    return None


def _in_onnx(
    host: Host, graph: WeightGraph, like: str | None, notes: list[str]
) -> tuple[WeightGraph, list[str]]:
    """Return the network in the nodes of an ONNX file, which takes all its weights and no others."""
    from sane_plugins.weights import rounded_to

    if like is None:
        if graph.container == "onnx":
            return graph, notes  # it keeps its nodes
        raise SourceError(
            graph.source,
            "it names no ONNX file beside it that it came from",
            "weights alone do not say how to compute",
            "name the ONNX file whose nodes to keep with --like",
        )
    template = host.open(like)
    owned = {param.key: param for param in template.params}
    state = graph.state_dict()
    for key in [*owned, *(param.key for param in graph.params)]:
        is_setting = key not in owned and key in template.tensors
        if is_setting and _same(state[key], template.tensors[key]):
            continue
        if key not in state or key not in owned:
            raise SourceError(
                like,
                f"'{key}' is only in {graph.source if key in state else like}",
                "the weights must be those of its nodes",
                "name the ONNX file that the network was exported to",
            )
    tensors, rounded_keys = {}, []
    for key, param in owned.items():
        rounded = rounded_to(state[key], param.dtype)
        if rounded is None:
            raise SourceError(
                f"{like}, '{key}'",
                f"its type {str(param.dtype).removeprefix('torch.')} does not hold the values",
                "its nodes keep their types",
                "export the network anew",
            )
        if not _same(rounded.double(), state[key].double()):
            rounded_keys.append(key)
        tensors[key] = rounded
    if rounded_keys:
        notes = [*notes, f"{_names(rounded_keys)}: rounded to the types of {like}"]
    return template.replace(tensors), notes


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.equal(other)
