"""Of the networks that packages offer, those are chosen that are alike in architecture and can run."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from sane_plugins import hookimpl
from sane_plugins.architectures import build, small_cnn
from sane_plugins.errors import SourceError
from sane_plugins.grafting import PromptInfo, PromptOffer
from sane_plugins.host import Host
from sane_plugins.prompts import choose_offers, network_of_module
from sane_plugins.tasks import Task

RESNET = {"name": "small_resnet", "widths": (8, 16), "blocks": (1, 1)}
MOBILE = {"name": "small_mobilenet", "widths": (8, 16), "blocks": (1, 1), "features": 32}


def _task(size: int = 32, channels: int = 3) -> Task:
    images = torch.randn(8, channels, size, size, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 2
    return Task(
        name="t",
        x_train=images,
        y_train=labels,
        x_test=images,
        y_test=labels,
        classes=("0", "1"),
        pixel_mean=(0.5,) * channels,
        pixel_deviation=(0.25,) * channels,
    )


def _offer(name: str, make: Callable[[], nn.Module], task: str, classes: int) -> PromptOffer:
    info = PromptInfo(name=name, task=task, classes=tuple(map(str, range(classes))))
    return PromptOffer(info=info, load=lambda: network_of_module(make(), info))


class _Offering:
    """A plugin that offers what it is given."""

    def __init__(self, offers: dict[str, PromptOffer]) -> None:
        self.offers = offers

    @hookimpl
    def sane_prompts(self) -> dict[str, PromptOffer]:
        return self.offers


@pytest.fixture
def offers() -> dict[str, PromptOffer]:
    torch.manual_seed(0)
    return {
        "mobile": _offer("mobile", partial(build, MOBILE), "photos", 100),
        "resnet": _offer("resnet", partial(build, RESNET), "photos", 100),
        "large": _offer("large", partial(build, MOBILE), "ImageNet-1k", 1000),
        "broken": _offer("broken", lambda: nn.Linear(3, 2), "numbers", 10),
    }


@pytest.mark.parametrize(("target", "alike"), [(RESNET, "resnet"), (MOBILE, "mobile")])
def test_one_of_each_training_data_is_chosen_the_one_most_alike(offers, target, alike) -> None:
    chosen = choose_offers(offers, lambda name: offers[name].load(), build(target), _task())
    assert [network.info.name for network in chosen.networks] == ["large", alike]
    (note,) = chosen.notes
    assert note.startswith("prompt broken is left out: it does not take images")


@pytest.mark.parametrize("task", [_task(channels=1), _task(16)])
def test_none_is_chosen_for_grey_or_tiny_images(offers, task) -> None:
    def read(_: str) -> None:
        raise AssertionError

    module = build({**RESNET, "channels_in": task.channels})
    assert choose_offers(offers, read, module, task).networks == ()


def test_an_offer_that_cannot_be_read_is_left_out(offers) -> None:
    def read(name: str) -> object:
        if name == "large":
            raise SourceError("large", "it is gone", "a file is needed", "install it again")
        return offers[name].load()

    chosen = choose_offers(offers, read, build(RESNET), _task())
    assert [network.info.name for network in chosen.networks] == ["resnet"]
    assert "prompt large is left out: it is gone" in chosen.notes


def test_networks_of_the_targets_shapes_go_before_offers(offers) -> None:
    host = Host.installed()
    host.register(_Offering(offers), "offering")
    own = host.default_prompts(small_cnn(3), _task())
    assert not [x for x in own.networks if x.info.name in offers]
    offered = host.default_prompts(build(RESNET), _task())
    assert {"large", "resnet"} <= {network.info.name for network in offered.networks}
    assert any(note.startswith("prompt large (trained on ImageNet-1k)") for note in offered.notes)
    grey = host.default_prompts(build({**RESNET, "channels_in": 1}), _task(channels=1))
    assert not [x for x in grey.networks if x.info.name in offers]


def test_a_hosts_offers_can_be_chosen_from() -> None:
    host = Host.installed()
    chosen = choose_offers(host.prompts(), host.prompt_network, build(RESNET), _task(64))
    tasks = [network.info.task for network in chosen.networks]
    assert len(set(tasks)) == len(tasks)
