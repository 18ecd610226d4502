"""The inputs of an initialisation by name, and those that are found by it alone: prompts, sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sane_plugins.architectures import (
    is_bare_name,
    is_function_name,
)
from sane_plugins.arguments import find_offer, from_plain
from sane_plugins.cli.options.factories import Opener
from sane_plugins.errors import UsageError

if TYPE_CHECKING:
    from sane_plugins.architectures import Trust
    from sane_plugins.cli.initialization.targets import Target
    from sane_plugins.generation import Prompts, Sampler
    from sane_plugins.host import Host
    from sane_plugins.tasks import Task


@dataclass(frozen=True, kw_only=True)
class InputNames:
    """The inputs as named on the command line; recorded in a file's provenance to find them again.

    `sets_test_aside` where a task without test images was read with a fifth held out as such, as earlier
    versions did: nobody looks at them.
    """

    model: str
    factory: str | None
    task: str
    size: int | None
    prompts: tuple[str, ...]
    sane: Path | None
    sampler: str
    validation: str | None = None
    sets_test_aside: bool = True

    @property
    def factory_is_for_prompts(self) -> bool:
        """Return whether --factory is about the prompts, as MODEL is a name that builds its network."""
        from sane_plugins.formats import exists, is_hub_name

        is_file = exists(self.model) or is_hub_name(self.model)
        is_built = is_function_name(self.model) or is_bare_name(self.model)
        return is_built and not is_file and bool(self.prompts)

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


def resolve_prompts(
    host: Host, names: InputNames, source: str, target: Target, trust: Trust
) -> Prompts:
    """Return the prompts that a source names: a network, an offer, `cache`, or the best of a zoo folder.

    A file is what --factory builds where that is not for MODEL. Of what a zoo names, only our architectures
    and the functions in `trust` are called.
    """
    from torch import nn

    from sane_plugins.formats import exists
    from sane_plugins.generation import Prompts, choose_prompts
    from sane_plugins.prompts import CACHE, PromptReader, cached_prompts, run_as_wider
    from sane_plugins.weights import from_module
    from sane_plugins.zoo import Zoo

    if _is_zoo(source):
        return choose_prompts(target.module(), Zoo.open(source, trust))
    if not exists(source) and source in host.prompts():
        return Prompts((host.prompt_network(source),), ())
    if not exists(source) and source == CACHE:
        found = cached_prompts(host.prompt_network, from_module(target.module()).size)
        return Prompts(found.networks, found.notes)
    are_built = names.factory_is_for_prompts and not any(map(_is_zoo, names.prompts))
    opener = Opener(host, [names.factory] if names.factory and are_built else [])
    graph = opener(source).require_finite()
    notes = (f"{source}: {graph.notes[0]}",) if graph.recognized else ()
    published = host.published_networks()
    network = PromptReader(lambda _: graph, host.recognizer, opener.builders, published)(source)
    if isinstance(target.network, nn.Module) and not opener.builders:
        network = run_as_wider(network, target.network, target.task.x_train)
    return Prompts((network,), (*notes, *network.notes))


def notes_on_prompts(
    host: Host, names: InputNames, prompts: Sequence[Prompts], task: Task
) -> list[str]:
    """Return the notes on a choice of prompts, on what their weights lack, and on what each has seen."""
    from sane_plugins.prompts import class_notes, untrained_notes

    networks = [network for chosen in prompts for network in chosen.networks]
    built = [name for name in names.prompts if _is_built(host, name)]
    return [
        *(text for chosen in prompts for text in chosen.notes),
        *untrained_notes(networks, built),
        *class_notes([network.info for network in networks], task.classes),
    ]


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
    try:
        return find_offer("sampler", name, host.samplers())
    except UsageError as error:
        raise host.or_disabled(error) from None


def _is_zoo(source: str) -> bool:
    """Return whether a prompt is a folder of networks rather than one network."""
    from sane_plugins.formats import exists, locate

    return exists(source) and Path(source).is_dir() and not locate(source)


def _is_built(host: Host, source: str) -> bool:
    """Return whether a prompt is a name that builds a network, without a file of weights behind `@`."""
    from sane_plugins.formats import exists, is_hub_name
    from sane_plugins.prompts import CACHE

    is_found = exists(source) or is_hub_name(source) or source in (CACHE, *host.prompts())
    return not is_found and "@" not in source
