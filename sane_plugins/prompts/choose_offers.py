"""Choose among the prompts that packages offer: of each training data, the most alike in architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from sane_plugins.display import ShortRepr
from sane_plugins.errors import SaneError
from sane_plugins.grafting import (
    PromptNetwork,
    PromptOffer,
    match,
    prompt_images,
    read_units,
)
from sane_plugins.tasks import Task

_COLOURS = 3
_LEAST_SIZE = 24  # pixels of images that a network for photos may know something of
_IMAGES = 2  # that are run to see how layers are connected


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ChosenOffers(ShortRepr):
    """The chosen networks, those that have seen the most classes first, and what to say of the choice."""

    networks: tuple[PromptNetwork, ...]
    notes: tuple[str, ...]


def choose_offers(
    offers: Mapping[str, PromptOffer],
    read: Callable[[str], PromptNetwork],
    target: nn.Module,
    task: Task,
) -> ChosenOffers:
    """Choose offers for a network and its images: of each training data the one most alike.

    `read` reads an offer by its name. Likeness is that of `match`, docs/explanation/sane.md, section 15.1.
    None are chosen for grey or very small images; offers that cannot run on them are left out.
    """
    if task.channels != _COLOURS or min(task.size) < _LEAST_SIZE:
        return ChosenOffers(networks=(), notes=())
    units = read_units(target, task.x_train[:_IMAGES])
    best: dict[str, tuple[float, PromptNetwork]] = {}
    notes = []
    for name, offer in offers.items():
        try:
            network = read(name)
            if network.build is None:
                continue
            module = network.build().to(task.x_train.device)
            images = prompt_images(network, module, task, _IMAGES)
            likeness = match(read_units(module, images), units).similarity
        except SaneError as error:
            notes.append(f"prompt {name} is left out: {error.found}")
            continue
        known = best.get(offer.info.task)
        if known is None or likeness > known[0]:
            best[offer.info.task] = likeness, network
    chosen = sorted(best.values(), key=lambda found: (-len(found[1].info.classes), -found[0]))
    return ChosenOffers(networks=tuple(network for _, network in chosen), notes=tuple(notes))
