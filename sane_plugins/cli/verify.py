"""`sane-init verify`: make initial weights again from the provenance in their file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from sane_plugins.cli.console import command_options, open_host, print_json, print_line
from sane_plugins.cli.inputs import (
    InputNames,
    Target,
    resolve_prompts,
    resolve_sampler,
    resolve_target,
)
from sane_plugins.runtime import threads

if TYPE_CHECKING:
    from sane_plugins.autoencoder import SANE
    from sane_plugins.host import Host
    from sane_plugins.weights import WeightGraph

_INPUT_NAMES = {"sane": "the SANE", "task": "the task's images", "prompts": "the prompts"}


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

    differs = _describe_difference(open_host(), file, read_provenance(file))
    if as_json:
        print_json({"file": str(file), "same": not differs, "differs": differs})
    else:
        print_line(f"{file}: {differs}." if differs else f"{file}: made again, the same bytes.")
    if differs:
        raise SystemExit(1)


def _describe_difference(host: Host, file: Path, provenance: Mapping[str, Any]) -> str:
    """Return a sentence on what differs, empty if the bytes are the same."""
    from sane_plugins.initialize import (
        environment_info,
        input_hashes,
        options_from_provenance,
        remake,
    )

    names = InputNames.from_json(provenance["command"])
    target = resolve_target(host, names)
    prompts, sane = _prompts(host, names, target), _sane(names)
    inputs = input_hashes(target.task, prompts, sane)
    changed = [
        name
        for key, name in _INPUT_NAMES.items()
        if _hashes(inputs[key]) != _hashes(provenance[key])
    ]
    if changed:
        return f"{' and '.join(changed)} are not those that the weights were made from"
    options = options_from_provenance(provenance)
    options = replace(options, sampler=resolve_sampler(host, names.sampler))
    with threads(int(provenance["versions"]["threads"])):
        graph = remake(target.network, target.task, prompts, sane, options, provenance)
        environment = environment_info(options.device)
    with TemporaryDirectory() as folder:
        reproduced, metadata = Path(folder) / file.name, {"provenance": provenance}
        path = host.save(graph, reproduced, metadata=metadata, like=names.model)
        if path.read_bytes() == file.read_bytes():
            return ""
    return _describe_environment_difference(provenance["versions"], environment)


def _describe_environment_difference(
    recorded: Mapping[str, str], current: Mapping[str, str]
) -> str:
    changes = [
        f"{key} is {current[key]}, not {recorded[key]}"
        for key in current
        if current[key] != recorded.get(key)
    ]
    if changes:
        return f"made again, the bytes differ: {', '.join(changes)}"
    return "made again, the bytes differ, though all versions are the same: the file was changed"


def _hashes(inputs: Any) -> Any:
    """Return only the hashes: the names of a task or of prompts do not count."""
    if isinstance(inputs, list):
        return [_hashes(x) for x in inputs]
    return inputs["hash"] if isinstance(inputs, dict) else inputs


def _prompts(host: Host, names: InputNames, target: Target) -> list[WeightGraph]:
    from sane_plugins.generation import choose_prompts, embedded_prompts

    if not names.prompts:
        return list(choose_prompts(target.module(), embedded_prompts()).graphs)
    return [graph for x in names.prompts for graph in resolve_prompts(host, x, target).graphs]


def _sane(names: InputNames) -> SANE:
    from sane_plugins.autoencoder import embedded_sane, load_sane

    return embedded_sane() if names.sane is None else load_sane(names.sane)
