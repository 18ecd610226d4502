"""A recipe file: networks of many forms on several tasks, each with its own training.

The file is a JSON object. `tasks` says where images lie, relative to a folder that the caller names. Each
object in `networks` stands for all combinations of its tasks, factories and trainings.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from sane_plugins.architectures import family_name
from sane_plugins.arguments import (
    ArgumentTypeError,
    from_plain,
    require_field_types,
    require_ranges,
)
from sane_plugins.errors import UsageError, first_line

_MAX_BYTES = 2**22  # of a recipe
_MAX_NETWORKS = 10_000
_RANGES: Mapping[str, tuple[float, float]] = {
    "epochs": (1, 100_000),
    "batch": (2, 2**16),
    "lr": (0, 1e3),
    "wd": (0, 1e3),
    "smoothing": (0, 0.9),
    "images": (0, 2**31),
    "size": (0, 1024),
    "seed": (-(2**40), 2**40),
}


@dataclass(frozen=True, kw_only=True)
class NetworkTraining:
    """How one network is trained: a one-cycle schedule of the peak rate `lr` over `epochs`.

    `wd` is the decoupled decay of kernels under "adamw", the usual one under "sgd", which has Nesterov
    momentum 0.9. `smoothing` is that of labels. With `augment` a random part of each image is cut out,
    mirrored or not. `images` limits the training images and `size` resizes all to so many pixels; 0 leaves
    them.
    """

    epochs: int = 16
    batch: int = 128
    opt: Literal["adamw", "sgd"] = "adamw"
    lr: float = 2e-3
    wd: float = 0.05
    smoothing: float = 0.1
    augment: bool = True
    images: int = 0
    size: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        require_field_types(self)
        require_ranges(self, _RANGES)


@dataclass(frozen=True, kw_only=True)
class RecipeTask:
    """Where a task's images lie, and what is done to them: a size in pixels, grey made `channels` channels.

    `training` is how its networks are trained where they do not say otherwise.
    """

    source: str
    size: int = 0
    channels: int = 0
    training: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True)
class RecipeNetwork:
    """One network of a recipe; its name tells its form and task and is the same in every run."""

    name: str
    task: str
    factory: Mapping[str, Any] = field(hash=False)
    training: NetworkTraining


@dataclass(frozen=True, kw_only=True)
class _Combinations:
    tasks: tuple[str, ...]
    factories: tuple[Mapping[str, Any], ...]
    training: tuple[Mapping[str, Any], ...] = ({},)


@dataclass(frozen=True, kw_only=True)
class _RecipeFile:
    tasks: Mapping[str, Any]
    networks: tuple[_Combinations, ...]
    keep: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32, 64)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Tasks by name, networks, and the epochs after which networks are kept, beside the first and last."""

    tasks: Mapping[str, RecipeTask]
    networks: tuple[RecipeNetwork, ...]
    keep: tuple[int, ...]

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """Read a recipe file. Raises `UsageError` about the file and the place in it."""
        plain = _read_json(Path(path))
        try:
            stored = from_plain(_RecipeFile, plain, str(path))
            tasks = {
                name: from_plain(RecipeTask, task, f"{path}, tasks, {name}")
                for name, task in stored.tasks.items()
            }
            networks = tuple(_expand(stored.networks, tasks, str(path)))
        except ArgumentTypeError as error:
            way_out = "see 'How to train a zoo' for the form of a recipe"
            raise UsageError(error.place, error.found, error.needed, way_out) from error
        return cls(tasks=tasks, networks=networks, keep=stored.keep)

    def only(self, patterns: Sequence[str]) -> Recipe:
        """Return the recipe with the networks whose names match one of the patterns (`*`, `?`, `[...]`)."""
        kept = tuple(x for x in self.networks if any(fnmatchcase(x.name, p) for p in patterns))
        if not kept:
            raise UsageError(
                f"--only {patterns[0]}",
                f"no network of the recipe has such a name, as '{self.networks[0].name}'",
                "a name is FORM-TASK-LETTERS, and * stands for anything",
                "write for example --only 'resnet-*'",
            )
        return replace(self, networks=kept)

    def at_most(self, epochs: int | None = None, images: int | None = None) -> Recipe:
        """Return the recipe with no network trained longer, or on more images, than given."""

        def shortened(training: NetworkTraining) -> NetworkTraining:
            return replace(
                training,
                epochs=min(epochs or training.epochs, training.epochs),
                images=min(filter(None, (images, training.images)), default=0),
            )

        return replace(
            self,
            networks=tuple(replace(x, training=shortened(x.training)) for x in self.networks),
        )

    def kept_epochs(self, network: RecipeNetwork) -> tuple[int, ...]:
        """Return the epochs after which a network is kept; the start and the end are among them."""
        last = network.training.epochs
        return tuple(sorted({0, last, *(epoch for epoch in self.keep if 0 <= epoch < last)}))


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(
                path,
                f"it has {path.stat().st_size:,} bytes",
                f"a recipe has at most {_MAX_BYTES:,}",
                "check the path",
            )
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            path,
            f"it cannot be read as a recipe ({first_line(error)})",
            "a JSON object of tasks and networks is needed",
            "see 'How to train a zoo' for the form of a recipe",
        ) from error


def _expand(
    groups: Iterable[_Combinations], tasks: Mapping[str, RecipeTask], place: str
) -> list[RecipeNetwork]:
    """Return every network that the combinations stand for."""
    found: dict[str, RecipeNetwork] = {}
    for number, group in enumerate(groups):
        where = f"{place}, networks, {number}"
        for task in group.tasks:
            if task not in tasks:
                raise UsageError(
                    where,
                    f"it names a task '{task[:80]}'",
                    f"the tasks are {', '.join(tasks)}",
                    "correct the name, or describe that task",
                )
            for factory in group.factories:
                for training in group.training:
                    told = {**tasks[task].training, **training}
                    made = from_plain(NetworkTraining, told, f"{where}, training")
                    network = RecipeNetwork(
                        name=_name(factory, task, made, where),
                        task=task,
                        factory=factory,
                        training=made,
                    )
                    if network.name in found:
                        raise UsageError(
                            where,
                            f"two networks are the same ({factory} on {task})",
                            "each is trained once",
                            "leave one out, or give it another seed",
                        )
                    found[network.name] = network
    if not 0 < len(found) <= _MAX_NETWORKS:
        raise UsageError(
            place,
            f"it stands for {len(found):,} networks",
            f"1 to {_MAX_NETWORKS:,} are needed",
            "correct 'networks'",
        )
    return [*found.values()]


def _name(factory: Mapping[str, Any], task: str, training: NetworkTraining, place: str) -> str:
    """Return FORM-TASK-LETTERS; the letters are a digest of all that makes the network."""
    function = factory.get("name")
    if not isinstance(function, str):
        raise UsageError(
            place,
            "a factory names no function",
            "its 'name' is one of our families, or package.module:function",
            'write for example {"name": "resnet", "depth": 8}',
        )
    told = json.dumps([factory, task, asdict(training)], sort_keys=True)
    form = family_name(function) or function.rpartition(":")[2]
    return f"{form}-{task}-{sha256(told.encode()).hexdigest()[:6]}"
