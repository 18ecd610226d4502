"""Transfer methods as hosts offer them: what they write, what they need, what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from graftnets import MobileNet, Opaque, PlainNet, ResidualNet, trained
from tokennets import TorchViT
from tokennets import trained as trained_tokens
from torch import nn

from sane_plugins import hookimpl
from sane_plugins.builtin.abilities import _Guarded
from sane_plugins.errors import SaneError, SourceError
from sane_plugins.grafting import (
    Preparation,
    PromptInfo,
    PromptNetwork,
    base_of,
    prompt_images,
    transfer_methods,
)
from sane_plugins.host import Host
from sane_plugins.tasks import Task
from sane_plugins.weights import from_module


def task(channels: int = 3, size: int = 16) -> Task:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, channels, size, size, generator=rng), torch.arange(12) % 5
    return Task(
        name="noise",
        x_train=x,
        y_train=y,
        x_test=x,
        y_test=y,
        classes=tuple("abcde"),
        pixel_mean=(0.5,) * channels,
        pixel_deviation=(0.25,) * channels,
    )


def prompt(module: nn.Module, preparation: Preparation | None = None) -> PromptNetwork:
    return PromptNetwork(
        graph=from_module(module),
        info=PromptInfo(name="prompt", preparation=preparation),
        build=lambda: module,
    )


@pytest.mark.parametrize("name", ["graft", "place"])
def test_a_host_offers_methods_that_write_what_they_say(name: str) -> None:
    method = Host.installed().transfers()[name]
    target = PlainNet((8, 9, 10))
    before = {key: value.clone() for key, value in target.state_dict().items()}
    found = method(target, prompt(trained(PlainNet())), task(), torch.Generator().manual_seed(0))
    changed = {k for k, v in target.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == set(found.origins)
    assert set(found.origins.values()) == {"transferred"}
    assert 0 < found.similarity < 1
    assert found.notes[0].startswith("4 of 4 layers")


def test_transformers_are_fitted_to_a_prompt_that_is_deeper() -> None:
    torch.manual_seed(0)
    source, target = prompt(trained_tokens(TorchViT(depth=3))), TorchViT()
    found = transfer_methods()["regression"](target, source, task(size=32), torch.Generator())
    assert found.origins["encoder.layers.1.linear2.weight"] == "fitted"
    assert found.origins["encoder.layers.1.linear1.weight"] == "transferred"
    assert "of their variance" in found.notes[-1]


def test_transformers_and_attention_are_offered_by_the_same_methods() -> None:
    torch.manual_seed(0)
    source, data = prompt(trained_tokens(TorchViT())), task(size=32)
    target, drawn, plain = TorchViT(heads=2, depth=3), TorchViT(), PlainNet()
    found = transfer_methods()["graft"](target, source, data, torch.Generator().manual_seed(0))
    assert "encoder.layers.2.self_attn.in_proj_weight" in found.origins
    assert 0 < found.similarity < 1
    mimetic = transfer_methods()["mimetic"]
    found = mimetic(drawn, source, data, torch.Generator().manual_seed(0))
    assert set(found.origins.values()) == {"mimetic"}
    assert "classes.weight" not in found.origins
    found = mimetic(plain, source, data, torch.Generator().manual_seed(0))
    assert not found.origins
    assert "no attention" in found.notes[0]


def test_equal_inputs_give_equal_bytes_whatever_the_labels() -> None:
    source, data = prompt(trained(MobileNet())), task()
    other = replace(data, y_train=data.y_train.flip(0))
    made = []
    for each in (data, other):
        torch.manual_seed(7)
        made.append(ResidualNet((9, 9, 30)))
        transfer_methods()["graft"](made[-1], source, each, torch.Generator().manual_seed(1))
    states = (module.state_dict() for module in made)
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_what_was_not_seen_is_said() -> None:
    target = MobileNet(has_gate=True)
    found = transfer_methods()["graft"](
        target, prompt(trained(Opaque())), task(), torch.Generator().manual_seed(0)
    )
    assert any("2 gates" in note for note in found.notes)
    assert any("prompt: connections are not known" in note for note in found.notes)


def test_a_prompt_that_cannot_run_is_refused_and_nothing_is_written() -> None:
    target = PlainNet()
    before = from_module(target)
    state = {key: value.clone() for key, value in before.tensors.items()}
    for source in (replace(prompt(PlainNet()), build=None), prompt(nn.Linear(7, 5))):
        with pytest.raises(SourceError, match="prompt"):
            transfer_methods()["graft"](target, source, task(), torch.Generator())
    assert all(torch.equal(value, before.tensors[key]) for key, value in state.items())


def test_images_reach_a_prompt_as_it_was_trained() -> None:
    data = task()
    prepared = Preparation(mean=(0.1, 0.2, 0.3), deviation=(0.5, 0.5, 0.4), size=(32, 32))
    images = prompt_images(prompt(PlainNet(), prepared), PlainNet(), data)
    brightness = data.x_train * 0.25 + 0.5
    assert images.shape == data.x_train.shape
    torch.testing.assert_close(images[:, 2], (brightness[:, 2] - 0.3) / 0.4)


def test_images_get_the_channels_and_the_size_that_a_prompt_needs() -> None:
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    prepared = Preparation(mean=(0.5,) * 3, deviation=(0.25,) * 3, size=(8, 8))
    images = prompt_images(prompt(fixed, prepared), fixed, task(channels=1))
    assert images.shape == (12, 3, 8, 8)
    assert torch.equal(images[:, 0], images[:, 2])


def test_a_transfer_that_is_a_class_is_left_out() -> None:
    class Offers:
        @hookimpl
        def sane_transfers(self):
            return {"class": type("Mine", (), {"__call__": len}), "number": 3, "mine": lambda *_: 0}

    host = Host.installed()
    host.register(Offers(), "giver")
    assert {"graft", "mine"} <= set(host.transfers())
    assert not {"class", "number"} & set(host.transfers())
    assert {x.plugin for x in host.problems} == {"giver"}


def test_a_guarded_method_keeps_its_attributes_and_all_its_failures_are_told() -> None:
    class Odd:
        needs_prompt = False

        @property
        def base(self) -> Odd:
            return self

        def __call__(self, *_: object) -> str:
            return "written"

        def vary(self, *_: object) -> None:
            raise ValueError("odd")

    class Offers:
        @hookimpl
        def sane_transfers(self):
            return {"odd": odd}

    host, odd = Host.installed(), Odd()
    host.register(Offers(), "giver")
    guarded = _Guarded(host, "sane_transfers", odd, host.transfers()["odd"])
    assert guarded(1, 2) == "written"
    assert not guarded.needs_prompt
    assert base_of(guarded) == guarded
    assert not hasattr(guarded, "other")
    with pytest.raises(SaneError, match="odd"):
        guarded.vary()
    assert [x.plugin for x in host.problems] == ["giver"]
