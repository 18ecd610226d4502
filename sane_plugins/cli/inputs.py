"""Resolve the inputs of an initialisation by name: the network, the images, the prompts, the sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sane_plugins.architectures import (
    SMALL_CNN,
    family_name,
    is_bare_name,
    is_function_name,
    without_options,
)
from sane_plugins.arguments import from_plain
from sane_plugins.cli.factories import Opener
from sane_plugins.cli.fitting import MIXED_SIZE, with_channels_taken, with_size_taken
from sane_plugins.errors import SourceError, TaskError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from sane_plugins.architectures import BuildCode, Trust
    from sane_plugins.generation import Prompts, Sampler
    from sane_plugins.host import Host
    from sane_plugins.tasks import Task


_LIBRARIES = ("torchvision:", "timm:")
_MOST_VALUES = 2**29  # of images in folders that are resized without being asked for: two GiB


@dataclass(frozen=True, kw_only=True)
class InputNames:
    """The inputs as named on the command line; recorded in a file's provenance to find them again."""

    model: str
    factory: str | None
    task: str
    size: int | None
    prompts: tuple[str, ...]
    sane: Path | None
    sampler: str
    validation: str | None = None

    @property
    def validation_share(self) -> float | None:
        """Return which share of the training images is held out to choose by, if --validation is a number.

        Raises `UsageError` for one that is no share.
        """
        try:
            share = float(self.validation or "")
        except ValueError:
            return None
        if not 0 < share < 1:
            raise UsageError(
                "--validation",
                f"it is {self.validation}",
                "a share of the training images lies between 0 and 1",
                "write for example 0.2, or name a folder or file of images",
            )
        return share

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> InputNames:
        """Read what `to_json` wrote. Raises `ArgumentTypeError`."""
        names: InputNames = from_plain(cls, stored, "command")
        return names

    def to_json(self) -> dict[str, Any]:
        """Return the names as a provenance holds them."""
        sane = None if self.sane is None else str(self.sane)
        told = {**asdict(self), "prompts": list(self.prompts), "sane": sane}
        if self.validation is None:  # as files have it that were written before there was any
            del told["validation"]
        return told


@dataclass(frozen=True)
class Target:
    """The network to initialise, as a module or a function that builds it, and the task's images.

    `name` is that by which a host builds it, as far as there is one; `is_library`: it is a library's. `code`
    builds it, without its weights.
    """

    network: nn.Module | Callable[[], nn.Module]
    task: Task
    notes: tuple[str, ...] = ()
    name: str = "the network"
    is_library: bool = False
    code: Callable[[], BuildCode] | None = None

    def module(self) -> nn.Module:
        """Return the module itself, or one that the function builds."""
        from torch import nn

        return self.network if isinstance(self.network, nn.Module) else self.network()

    def build_code(self) -> BuildCode:
        """Return the code that builds the network without its weights."""
        from sane_plugins.architectures import build_code

        return self.code() if self.code else build_code(self.name, len(self.task.classes))


def resolve_target(host: Host, names: InputNames) -> Target:
    """Read the images, and find the network that MODEL names, for their classes."""
    from sane_plugins.tasks import MixedSizesError

    factory = None if _is_for_prompts(names) else names.factory
    resolve = partial(resolve_network, host, names.model, factory, resize=names.size is None)
    try:
        return resolve(_load_task(names, names.size))
    except MixedSizesError as error:
        usual, size = error.usual_side, min(error.usual_side, MIXED_SIZE)
        target = resolve(_load_task(names, size))
    if target.task.size != (size, size):  # read again, so that they are not resized twice
        size = target.task.size[0]
        _require_room(names, size)
        target = resolve(_load_task(names, size))
    note = (
        f"images of several sizes, of some {usual} pixels, are resized to {size}x{size}:"
        " --size sets another"
    )
    return replace(target, notes=(note, *target.notes))


def _load_task(names: InputNames, size: int | None) -> Task:
    from sane_plugins.tasks import load_task

    others = None if names.validation_share is not None else names.validation
    return load_task(names.task, size, others)


def _require_room(names: InputNames, size: int) -> None:
    """Raise `TaskError` where a folder's images would take more memory at a size that nobody asked for."""
    from sane_plugins.tasks import count_files

    folders = [Path(names.task), *([Path(names.validation)] if names.validation else [])]
    count = sum(count_files(folder, _MOST_VALUES) for folder in folders if folder.is_dir())
    if 3 * count * size**2 > _MOST_VALUES:
        raise TaskError(
            names.task,
            f"its {count:,} images were to be resized to {size}x{size}, which {names.model} takes",
            "that takes several GB of memory",
            f"give fewer images, or write --size {size} if that is meant",
        )


def resolve_network(
    host: Host, model: str, factory: str | None, task: Task, resize: bool
) -> Target:
    """Return the target that MODEL names, for the classes of the task.

    `resize` allows the images to be resized to what the network takes where that is known.
    """
    from sane_plugins.architectures import build_code
    from sane_plugins.formats import exists, is_hub_name

    classes = len(task.classes)

    def fitted(target: Target) -> Target:
        return with_size_taken(host, with_channels_taken(target), resize)

    if family_name(model) == family_name(SMALL_CNN):
        return fitted(_small_cnn(task, resize))
    if factory is not None:
        module = _load_checkpoint(host, model, factory, classes)
        return fitted(Target(module, task, (), factory, code=partial(build_code, factory, classes)))
    if exists(model) or is_hub_name(model):
        return fitted(_recognized_target(host, model, task))
    prefix, colon, _ = model.partition(":")
    has_prefix = colon and len(prefix) > 1 and all(p.isidentifier() for p in prefix.split("."))
    if not has_prefix and (Path(model).suffix or Path(model).name != model):
        raise SourceError(
            model, "it does not exist", "a network's name or file is needed", "check the path"
        )
    if get_close_matches(model, [SMALL_CNN]):
        raise UsageError(
            model, "there is no such network", "a known name is needed", f"did you mean {SMALL_CNN}"
        )
    name, notes = _library_name(model)
    build = partial(host.build, name, classes)
    is_library, code = name.startswith(_LIBRARIES), partial(build_code, name, classes)
    return fitted(Target(build, task, notes, name, is_library=is_library, code=code))


def _library_name(model: str) -> tuple[str, tuple[str, ...]]:
    """Return a bare name with the prefix of the library that has it, and a note where several have it."""
    from sane_plugins.recognition import library_sources

    if not is_bare_name(model):
        return model, ()
    name = without_options(model)
    found = [x for x in library_sources(name) if find_spec(x.partition(":")[0]) is not None]
    sources = [x + model.removeprefix(name) for x in found]
    if not sources:
        return model, ()  # one that is newer than the index, or that nobody has
    first, *others = sources
    told = f"{model} is {first.partition(':')[0]}'s; write {' or '.join(others)} for the other"
    return first, ((told,) if others else ())


def resolve_prompts(
    host: Host, names: InputNames, source: str, target: Target, trust: Trust
) -> Prompts:
    """Return the prompts that a source names: a network, an offer, `cache`, or the best of a zoo folder.

    A file is what --factory builds where that is not for MODEL. Of what a zoo names, only our architectures
    and the functions in `trust` are called.
    """
    from sane_plugins.formats import exists
    from sane_plugins.generation import Prompts, choose_prompts
    from sane_plugins.prompts import CACHE, PromptReader, cached_prompts
    from sane_plugins.weights import from_module
    from sane_plugins.zoo import Zoo

    if _is_zoo(source):
        return choose_prompts(target.module(), Zoo.open(source, trust))
    if not exists(source) and source in host.prompts():
        return Prompts((host.prompt_network(source),), ())
    if not exists(source) and source == CACHE:
        found = cached_prompts(host.prompt_network, from_module(target.module()).size)
        return Prompts(found.networks, found.notes)
    are_built = _is_for_prompts(names) and not any(map(_is_zoo, names.prompts))
    opener = Opener(host, [names.factory] if names.factory and are_built else [])
    graph = opener(source)
    notes = (f"{source}: {graph.notes[0]}",) if graph.recognized else ()
    network = PromptReader(lambda _: graph, host.build, opener.builders)(source)
    return Prompts((network,), notes)


def notes_on_prompts(prompts: Sequence[Prompts], task: Task) -> list[str]:
    """Return the notes on a choice of prompts, and which of the task's classes each network has seen."""
    from sane_plugins.prompts import class_notes

    infos = [network.info for chosen in prompts for network in chosen.networks]
    chosen_notes = [text for chosen in prompts for text in chosen.notes]
    return [*chosen_notes, *class_notes(infos, task.classes)]


def with_names_in_cache(names: InputNames, prompts: Sequence[Prompts]) -> InputNames:
    """Return the names with those of the networks in place of `cache`, so that they are found again."""
    from sane_plugins.formats import exists
    from sane_plugins.prompts import CACHE

    found: list[str] = []
    for source, chosen in zip(names.prompts, prompts, strict=True):
        is_cache = source == CACHE and not exists(source)
        found += [network.info.name for network in chosen.networks] if is_cache else [source]
    return replace(names, prompts=tuple(found))


def resolve_sampler(host: Host, name: str) -> Sampler:
    """Return the sampler of that name. Raises `UsageError` if no plugin offers it."""
    samplers = host.samplers()
    if name not in samplers:
        raise UsageError(
            f"sampler '{name}'",
            "no plugin offers it",
            f"one of {', '.join(sorted(samplers))} is needed",
            "check the name, or install its plugin",
        )
    return samplers[name]


def _is_for_prompts(names: InputNames) -> bool:
    """Return whether --factory is about the prompts, as MODEL is a name that builds its network."""
    from sane_plugins.formats import exists, is_hub_name

    is_file = exists(names.model) or is_hub_name(names.model)
    is_built = is_function_name(names.model) or is_bare_name(names.model)
    return is_built and not is_file and bool(names.prompts)


def _is_zoo(source: str) -> bool:
    """Return whether a prompt is a folder of networks rather than one network."""
    from sane_plugins.formats import exists, locate

    return exists(source) and Path(source).is_dir() and not locate(source)


def _recognized_target(host: Host, model: str, task: Task) -> Target:
    """Return the network of a file that is recognised, for the task's classes, with the file's weights."""
    import torch

    from sane_plugins.recognition import find_candidates
    from sane_plugins.runtime import seeded
    from sane_plugins.weights import from_module, load_into

    graph = host.open(model)
    candidates = find_candidates(graph)
    if not candidates:
        raise UsageError(
            model,
            "a file holds weights, not the code that runs them",
            "the function that builds the network is needed",
            "name it with --factory package.module:function",
        )
    candidate = candidates[0]
    # A classifier of another class count stays as drawn.
    with seeded(torch.Generator().manual_seed(0)):
        module = candidate.build_for(host.build, len(task.classes))
    fresh = from_module(module)
    stored = {plain: graph.ties.get(key, key) for key, plain in candidate.names.items()}
    shapes = {param.key: param.shape for param in graph.params}
    fitting = {
        param.key: graph.tensors[stored[param.key]]
        for param in fresh.params
        if param.key in stored and shapes[stored[param.key]] == param.shape
    }
    load_into(module, fresh.replace(fitting))
    note = (
        f"{model} is {graph.notes[0]}; if it computes otherwise, name what builds it with --factory"
    )
    code = partial(candidate.code_for, len(task.classes))
    return Target(module, task, (note,), candidate.name, code=code)


def _small_cnn(task: Task, resize: bool) -> Target:
    from sane_plugins.architectures import build_code, small_cnn, small_cnn_size

    size = small_cnn_size(task.channels)
    notes: tuple[str, ...] = ()
    if resize and task.size != (size, size):
        notes = (f"images are resized from {task.size[0]}x{task.size[1]} to {size}x{size}",)
        task = task.resized(size)
    channels, classes = task.channels, len(task.classes)
    code = partial(build_code, SMALL_CNN, classes, channels)
    return Target(partial(small_cnn, channels, classes), task, notes, SMALL_CNN, code=code)


def _load_checkpoint(host: Host, model: str, factory: str, classes: int) -> nn.Module:
    """Build the network of a checkpoint and give it the checkpoint's weights."""
    import torch

    from sane_plugins.runtime import seeded
    from sane_plugins.weights import from_module, load_into

    graph = host.open(model)
    with seeded(
        torch.Generator().manual_seed(0)
    ):  # a classifier of another class count stays as drawn
        module = host.build(factory, classes)
    fresh = from_module(module)
    factory_shapes = {param.key: param.shape for param in fresh.params}
    checkpoint_shapes = {param.key: param.shape for param in graph.params}
    missing = sorted(factory_shapes.keys() ^ checkpoint_shapes.keys())
    if missing:
        raise SourceError(
            model,
            f"it and the network of {factory} differ in {', '.join(missing[:4])}",
            "the factory must build the network that was saved",
            "name the right function",
        )
    if factory_shapes == checkpoint_shapes:
        load_into(module, graph)
        return module
    matching = {
        key: graph.tensors[key]
        for key in factory_shapes
        if factory_shapes[key] == checkpoint_shapes[key]
    }
    load_into(module, fresh.replace(matching))
    return module
