"""`sane-init verify`: make initial weights again from what their file tells of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from sane_plugins.cli.console import command_options, open_host, print_json
from sane_plugins.cli.targets import built, find_sampler, find_target, open_prompts
from sane_plugins.runtime import threads

if TYPE_CHECKING:
    from sane_plugins.host import Host
    from sane_plugins.weights import WeightGraph

_KNOWN = {"sane": "the SANE", "task": "the task's images", "prompts": "the prompts"}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(path_type=Path))
@command_options
def verify(file: Path, as_json: bool) -> None:
    """Make the weights of FILE again, and tell whether the bytes are the same.

    FILE is what sane-init wrote; a form without room for its provenance has it in a file beside it.
    Nothing is searched or scored again; the task, the prompts and the code of the network must lie where
    they lay. The exit code is 1 where bytes differ.

    Example: sane-init verify digits.safetensors
    """
    from sane_plugins.initialize import read_provenance

    told = read_provenance(file)
    differs = _compared(open_host(), file, told)
    if as_json:
        print_json({"file": str(file), "same": not differs, "differs": differs})
    else:
        click.echo(f"{file}: {differs}." if differs else f"{file}: made again, the same bytes.")
    if differs:
        raise SystemExit(1)


def _compared(host: Host, file: Path, told: Mapping[str, Any]) -> str:
    """Return in one sentence what differs, nothing where the bytes are the same."""

    from sane_plugins.initialize import ingredients, remake, restored, surroundings
    from sane_plugins.tasks import load_task

    call = told["command"]
    target = find_target(
        host,
        call["model"],
        call["factory"],
        load_task(call["task"], call["size"]),
        call["size"] is None,
    )
    prompts, sane = _prompts(host, call, target), _sane(call)
    found = ingredients(target.task, prompts, sane)
    changed = [name for key, name in _KNOWN.items() if _hashes(found[key]) != _hashes(told[key])]
    if changed:
        return f"{' and '.join(changed)} are not those that the weights were made from"
    options = replace(restored(told), sampler=find_sampler(host, call["sampler"]))
    with threads(int(told["versions"]["threads"])):
        graph = remake(target.network, target.task, prompts, sane, options, told)
        here = surroundings(options.device)
    with TemporaryDirectory() as folder:
        again, metadata = Path(folder) / file.name, {"provenance": told}
        path = host.save(graph, again, metadata=metadata, like=call["model"])
        if path.read_bytes() == file.read_bytes():
            return ""
    return _reason(told["versions"], here)


def _reason(then: Mapping[str, str], here: Mapping[str, str]) -> str:
    other = [f"{key} is {here[key]}, not {then[key]}" for key in here if here[key] != then.get(key)]
    if other:
        return f"made again, the bytes differ: {', '.join(other)}"
    return "made again, the bytes differ, though all versions are the same: the file was changed"


def _hashes(told: Any) -> Any:
    return (
        [_hashes(x) for x in told]
        if isinstance(told, list)
        else (told["hash"] if isinstance(told, dict) else told)
    )


def _prompts(host: Host, call: Mapping[str, Any], target: Any) -> list[WeightGraph]:
    from sane_plugins.generation import choose_prompts, embedded_prompts

    if not call["prompts"]:
        return list(choose_prompts(built(target.network), embedded_prompts()).graphs)
    return [graph for name in call["prompts"] for graph in open_prompts(host, name, target).graphs]


def _sane(call: Mapping[str, Any]) -> Any:
    from sane_plugins.autoencoder import embedded_sane, load_sane

    return load_sane(call["sane"]) if call["sane"] else embedded_sane()
