"""Find the network to initialise that a command line names, and the task's images for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sane_plugins.architectures import SMALL_CNN, family_name, is_bare_name, without_options
from sane_plugins.cli.initialization.fitting import MIXED_SIZE, with_channels_taken, with_size_taken
from sane_plugins.errors import SourceError, TaskError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from sane_plugins.architectures import BuildCode
    from sane_plugins.cli.initialization.inputs import InputNames
    from sane_plugins.host import Host
    from sane_plugins.tasks import Task

_LIBRARIES = ("torchvision:", "timm:")
_MOST_VALUES = 2**29  # of images in folders that are resized without being asked for: two GiB


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

    factory = None if names.factory_is_for_prompts else names.factory
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
        f"the images are of several sizes (usually {usual} pixels) and are resized to {size}x{size}:"
        " --size sets another"
    )
    return replace(target, notes=(note, *target.notes))


def _load_task(names: InputNames, size: int | None) -> Task:
    from sane_plugins.tasks import load_task

    others = None if names.validation_share is not None else names.validation
    return load_task(names.task, size, others, sets_test_aside=names.sets_test_aside)


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


def _recognized_target(host: Host, model: str, task: Task) -> Target:
    """Return the network of a file that is recognised, for the task's classes, with the file's weights."""
    import torch

    from sane_plugins.recognition import find_candidates
    from sane_plugins.runtime import seeded
    from sane_plugins.weights import from_module, load_into

    graph = host.open(model)
    candidates = find_candidates(graph) or host.recognizer.likely_candidates(graph)
    if not candidates:
        again = ", and the output may be .onnx again" if graph.container == "onnx" else ""
        raise UsageError(
            model,
            "its architecture is not recognised",
            "the function that builds the network in torch is needed to run it",
            "name it with --factory package.module:function" + again,
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
