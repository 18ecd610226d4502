"""`sane-init verify`: make initial weights again from the provenance in their file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from sane_plugins.architectures import Trust, family_name, is_function_name
from sane_plugins.arguments import ArgumentTypeError
from sane_plugins.cli.console import (
    VisibleCommand,
    command_options,
    note,
    open_host,
    print_json,
    print_line,
)
from sane_plugins.cli.initialization.inputs import InputNames, resolve_prompts, resolve_sampler
from sane_plugins.cli.initialization.targets import Target, resolve_target
from sane_plugins.cli.options.trust import trust_options
from sane_plugins.errors import SaneError, SourceError
from sane_plugins.runtime import require_device, threads

if TYPE_CHECKING:
    from sane_plugins.autoencoder import SANE
    from sane_plugins.grafting import PromptNetwork
    from sane_plugins.host import Host
    from sane_plugins.initialize import Provenance

_INPUT_NAMES = {"sane": "the SANE", "task": "the task's images", "prompts": "the prompts"}
_MAX_PIXELS = 2**28  # values of all images, which a file may have resized: 1 GiB
_MAX_CHANNELS = 4
_MAX_FILES = 200_000  # in a folder of images
# Of all named networks, where the file does not hold more.
_MAX_VALUES, _MAX_TENSORS = 2**26, 20_000
_MAX_PROMPTS = 256  # names of prompts
_MAX_SHOWN = 200  # characters of a name
_PLAIN = r"[\w.:@,=/-]{1,200}"  # a name without characters that a shell understands


@click.command(cls=VisibleCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(path_type=Path))
@trust_options
@command_options
def verify(file: Path, trust: Trust, as_json: bool) -> None:
    """Make the weights of FILE again, and tell whether the bytes are the same.

    FILE is what sane-init wrote; a form without room for its provenance has it in a file beside it.
    Nothing is searched or scored again; the task, the prompts and the code of the network must lie where
    they lay. A function that FILE names is called only where --factory names it too. The exit code is 1 where
    bytes differ.

    Example: sane-init verify digits.safetensors
    """
    from sane_plugins.formats import read_metadata
    from sane_plugins.initialize import broken_provenance, read_provenance
    from sane_plugins.tasks import Usage

    provenance = read_provenance(file)
    try:
        usage = Usage.from_metadata(read_metadata(file))
        names = InputNames.from_json(provenance.command)
        _tell_what_is_trusted(file, names, trust)
        _require_modest_images(names, trust)
        told = usage is not None
        differs = _describe_difference(open_host(trust), file, provenance, names, trust, told)
    except ArgumentTypeError as error:
        raise broken_provenance(file, error) from error
    except SaneError as error:
        place = f"{file} was made with {error.place[:_MAX_SHOWN]}"
        raise SourceError(place, error.found, error.needed, error.way_out) from error
    if as_json:
        use = usage.to_metadata() if usage else {}
        print_json({"file": str(file), "same": not differs, "differs": differs, **use})
    else:
        print_line(f"{file}: {differs}." if differs else f"{file}: made again, the same bytes.")
        for line in usage.lines() if usage else ():
            print_line(line)
    if differs:
        raise SystemExit(1)


def _describe_difference(
    host: Host,
    file: Path,
    provenance: Provenance,
    names: InputNames,
    trust: Trust,
    told: bool,
) -> str:
    """Return a sentence on what differs, empty if the bytes are the same. `told`: the file says its use."""
    from sane_plugins.initialize import environment_info, input_hashes, remake
    from sane_plugins.tasks import Usage

    options = provenance.options
    require_device(options.device)
    options = replace(options, sampler=resolve_sampler(host, names.sampler))
    _require_modest_networks(host, file, names, trust)
    target = resolve_target(host, names)
    networks, sane = _prompts(host, names, target, trust), _sane(names)
    prompts = [network.graph for network in networks]
    inputs = input_hashes(target.task, prompts, sane)
    recorded = {
        "sane": provenance.sane,
        "task": provenance.task.hash,
        "prompts": [prompt.hash for prompt in provenance.prompts],
    }
    changed = [name for key, name in _INPUT_NAMES.items() if _hashes(inputs[key]) != recorded[key]]
    if changed:
        return f"{' and '.join(changed)} are not those that the weights were made from"
    with threads(provenance.threads):
        graph = remake(
            target.network,
            target.task,
            prompts,
            sane,
            options,
            provenance,
            prompt_networks=networks,
            methods=host.transfers(),
        )
        environment = environment_info(options.device)
    with TemporaryDirectory() as folder:
        reproduced, metadata = Path(folder) / file.name, {"provenance": provenance.stored}
        if told:
            metadata |= Usage.of(target.task).to_metadata()
        path = host.save(graph, reproduced, metadata=metadata, like=names.model)
        if path.read_bytes() == file.read_bytes():
            return ""
    return _describe_environment_difference(provenance.versions, environment)


def _require_modest_images(names: InputNames, trust: Trust) -> None:
    """Raise `ArgumentTypeError` if a file has images resized to more than a GiB on its own word."""
    from sane_plugins.formats import exists, source_errors
    from sane_plugins.tasks import count_files, load_task

    if names.size is None or trust.everything:
        return
    values = 0
    others = None if names.validation_share is not None else names.validation
    for source in filter(None, (names.task, others)):
        folder = Path(source)
        if exists(folder) and folder.is_dir():  # its images may be of several sizes
            with source_errors(folder):
                values += _MAX_CHANNELS * count_files(folder, _MAX_FILES)
        else:
            task = load_task(source)
            values += (len(task.y_train) + len(task.y_test)) * task.channels
    if names.size < 1 or values * names.size**2 > _MAX_PIXELS:
        raise ArgumentTypeError(
            "command, size",
            f"it is {names.size}",
            f"at least 1, and at most {_MAX_PIXELS:,} values in all images together, is needed",
            "",
        )


def _require_modest_networks(host: Host, file: Path, names: InputNames, trust: Trust) -> None:
    """Raise `SourceError` for a name by which much is downloaded or built, before it is.

    A function that the user names is the user's, and may not run without values.
    """
    from sane_plugins.architectures import Size, SizeLimit
    from sane_plugins.formats import exists, is_hub_name

    if len(names.prompts) > _MAX_PROMPTS and not trust.everything:
        raise ArgumentTypeError(
            "command, prompts",
            f"there are {len(names.prompts):,}",
            f"at most {_MAX_PROMPTS} are needed",
            "",
        )
    most = Size(max(file.stat().st_size, _MAX_VALUES), _MAX_TENSORS)
    limit = SizeLimit("its networks, all together", most)
    for name in (names.factory, names.model, *names.prompts):
        is_file = name is not None and (exists(name) or is_hub_name(name))
        if name is None or trust.allows(name) or family_name(name) or is_file:
            continue
        architecture, at, weights = name.partition("@")
        if at and not (exists(weights) and Path(weights).is_file()):
            raise SourceError(
                name,
                f"{weights[:_MAX_SHOWN]} is no file",
                "what a file names is not downloaded",
                # A way out is copied into a shell.
                f"if you want that, add --factory {name}"
                if re.fullmatch(_PLAIN, name)
                else "if you want that, add --trust",
            )
        with limit:
            host.build(architecture)


def _tell_what_is_trusted(file: Path, names: InputNames, trust: Trust) -> None:
    """Say which functions are called because all are trusted, before any is."""
    from sane_plugins.formats import exists

    named = (names.factory, names.model, *names.prompts)
    called = [x for x in named if is_function_name(x) and not exists(str(x))]
    if trust.everything and called:
        note(
            f"Note: {file}: trusted, so this is called: {', '.join(map(str, called))[:_MAX_SHOWN]}"
        )


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


def _prompts(host: Host, names: InputNames, target: Target, trust: Trust) -> list[PromptNetwork]:
    if not names.prompts:
        return list(host.default_prompts(target.module(), target.task).networks)
    return [
        network
        for x in names.prompts
        for network in resolve_prompts(host, names, x, target, trust).networks
    ]


def _sane(names: InputNames) -> SANE:
    from sane_plugins.autoencoder import embedded_sane, load_sane

    return embedded_sane() if names.sane is None else load_sane(names.sane)
