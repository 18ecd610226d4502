"""Whatever a user names as a prompt becomes a network with its weights, that runs where that is possible."""

import json
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from sane_plugins import hookimpl
from sane_plugins.architectures import build, small_cnn
from sane_plugins.errors import PluginError, SourceError
from sane_plugins.formats import save_safetensors
from sane_plugins.generation import choose_prompts, embedded_prompts
from sane_plugins.grafting import (
    Preparation,
    PromptInfo,
    PromptNetwork,
    PromptOffer,
)
from sane_plugins.host import Host
from sane_plugins.prompts import PromptCard, PromptReader, read_card
from sane_plugins.recognition import NamedBuilder, fit_builder
from sane_plugins.weights import from_module
from sane_plugins.zoo import Entry, write_zoo


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.installed()


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """Return a trained-looking ResNet: weights and statistics that no constructor gives."""
    torch.manual_seed(3)
    module = build({"name": "resnet", "depth": 8, "width": 8, "classes": 7})
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return module.eval()


def _images(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_a_module_is_copied_and_runs(host, resnet) -> None:
    network = host.prompt_network(resnet)
    expected = resnet(_images())
    first, second = network.build(), network.build()
    assert torch.equal(first(_images()), expected)
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert torch.equal(second(_images()), expected)
    assert not second.training
    assert host.prompt_network(network) is network
    assert host.open(network) is network.graph


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_that_is_recognised_runs_as_the_network_that_was_saved(
    host, resnet, tmp_path, suffix: str, half: bool
) -> None:
    path = tmp_path / f"net{suffix}"
    state = {k: x.half() if half and x.ndim else x for k, x in resnet.state_dict().items()}
    host.save(host.open(state), path)
    network = host.prompt_network(str(path))
    assert network.info.name == str(path)
    module = network.build()
    assert next(module.parameters()).dtype == torch.float32
    difference = (module(_images()) - resnet(_images())).abs().max()
    assert difference < 0.1 if half else difference == 0


def test_a_library_network_of_other_counts_runs(host, tmp_path) -> None:
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    source = "torchvision:mobilenet_v3_small,classes=5,channels=1"
    named = host.prompt_network(source)
    path = tmp_path / "net.pt"
    host.save(named.graph, path)
    read = host.prompt_network(path)
    images = _images(40)[:, :1]
    assert torch.equal(named.build()(images), read.build()(images))
    assert read.build()(images).shape == (2, 5)


def test_what_nobody_can_build_lends_its_weights_only(host, tmp_path) -> None:
    path = tmp_path / "net.safetensors"
    host.save(from_module(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))), path)
    network = host.prompt_network(path)
    assert network.build is None
    assert network.graph.size == 4 * 27 + 4 + 8 + 2
    with pytest.raises(SourceError):
        host.prompt_network(tmp_path / "none.pt")


def test_a_file_runs_as_what_its_factory_builds(host, tmp_path) -> None:
    module = small_cnn(3, classes=4).eval()
    path = tmp_path / "net.pt"
    torch.save({f"wrapped.{k}": x for k, x in module.state_dict().items()}, path)
    builders = [NamedBuilder("ours", lambda classes: small_cnn(3, classes or 10))]
    network = PromptReader(host.open, host.recognizer, builders)(path)
    assert torch.equal(network.build()(_images()), module(_images()))
    grey = [NamedBuilder("grey", lambda classes: small_cnn(1, classes or 10))]
    assert fit_builder(network.graph, grey[0]) is None


def test_networks_of_a_zoo_run() -> None:
    zoo = embedded_prompts()
    chosen = choose_prompts(small_cnn(3), zoo, count=2)
    assert chosen.graphs == tuple(network.graph for network in chosen.networks)
    for network in chosen.networks:
        entry = next(e for e in zoo.entries if network.graph.source.endswith(e.key))
        assert torch.equal(network.build()(_images()), zoo.module(entry)(_images()))


def test_networks_of_a_zoo_without_factories_do_not_run(tmp_path) -> None:
    entry = Entry(network="a", checkpoint="0", factory={}, properties={})
    zoo = write_zoo(tmp_path / "zoo", "zoo", [(entry, small_cnn(3).state_dict())])
    (network,) = choose_prompts(small_cnn(3), zoo).networks
    assert network.build is None


CARD = PromptCard(
    info=PromptInfo(
        name="mine",
        source="here",
        task="numbers",
        licence="MIT",
        classes=("one", "two"),
        preparation=Preparation(mean=(0.5,) * 3, deviation=(0.25,) * 3, size=(64, 48)),
    ),
    factory={"name": "resnet", "depth": 8, "width": 8, "classes": 7},
    record={"epochs": 3},
)


def test_a_card_tells_what_its_file_holds(host, resnet, tmp_path) -> None:
    path = tmp_path / "net.safetensors"
    save_safetensors(from_module(resnet), path, {"prompt": CARD.to_json()})
    assert read_card(path) == CARD
    network = host.prompt_network(path)
    assert (network.info.classes, network.info.preparation) == (
        ("one", "two"),
        CARD.info.preparation,
    )
    assert torch.equal(network.build()(_images()), resnet(_images()))


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda card: card.update(factory={"name": "os:system", "command": "touch MARK"}),
            "system",
        ),
        (lambda card: card.update(factory={"name": 3}), "names 3"),
        (lambda card: card.update(info=[1]), "list"),
        (lambda card: card["info"].pop("name"), "'name' is missing"),
        (lambda card: card["info"].update(classes=["a" * 10_000]), "too long"),
        (lambda card: card["info"]["preparation"].update(deviation=[0, 1, 1]), "deviation"),
        (lambda card: card["info"]["preparation"].update(mean=[1e999, 1, 1]), "given"),
        (lambda card: card["info"]["preparation"].update(size=[0, 5]), "no image"),
    ],
)
def test_a_strangers_card_runs_nothing_and_is_told_in_one_sentence(
    host, resnet, tmp_path, monkeypatch, change, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    card = json.loads(json.dumps(CARD.to_json()))
    change(card)
    path = tmp_path / "net.safetensors"
    save_safetensors(from_module(resnet), path, {"prompt": card})
    with pytest.raises(SourceError, match=told):
        host.prompt_network(path)
    assert not (tmp_path / "MARK").exists()


@pytest.mark.hostile
def test_a_card_builds_nothing_much_larger_than_its_file(host, resnet, tmp_path) -> None:
    path = tmp_path / "net.safetensors"
    huge = {"name": "mlp", "width": 100_000, "depth": 9}
    save_safetensors(from_module(resnet), path, {"prompt": {**CARD.to_json(), "factory": huge}})
    network = host.prompt_network(path)
    with pytest.raises(SourceError, match="mlp"):
        network.build()


def test_a_cards_factory_of_another_network_is_refused_when_it_is_built(resnet, tmp_path) -> None:
    path = tmp_path / "net.safetensors"
    card = {**CARD.to_json(), "factory": {"name": "resnet", "depth": 14, "width": 8}}
    save_safetensors(from_module(resnet), path, {"prompt": card})
    with pytest.raises(SourceError, match="layer1"):
        Host.installed().prompt_network(path).build()


# Offers


class _Offers:
    """A plugin that offers what it is given."""

    def __init__(self, offers: object) -> None:
        self.offers = offers

    @hookimpl
    def sane_prompts(self) -> object:
        return self.offers


def _host_with(offers: object) -> Host:
    host = Host.installed()
    host.register(_Offers(offers), "offering")
    return host


def test_an_offer_is_read_when_it_is_wanted(resnet) -> None:
    calls = []

    def load() -> nn.Module:
        calls.append(1)
        return resnet

    host = _host_with({"mine": PromptOffer(info=CARD.info, load=load)})
    assert host.prompts()["mine"].info.licence == "MIT"
    assert not calls
    network = host.prompt_network("mine")
    assert calls
    assert network.info is CARD.info
    assert torch.equal(network.build()(_images()), resnet(_images()))
    assert not host.problems


@pytest.mark.parametrize(
    ("offer", "told"),
    [
        ("no offer", "a str where a PromptOffer"),
        (PromptOffer(info=None, load=print), "its info is a NoneType"),  # type: ignore[arg-type]
        (PromptOffer(info=CARD.info, load=3), "cannot be called"),  # type: ignore[arg-type]
        (PromptOffer(info=PromptInfo(name="a\n"), load=print), "printable"),
        (PromptOffer(info=PromptInfo(name="a", classes=(1,)), load=print), "classes"),  # type: ignore[arg-type]
        (
            PromptOffer(info=PromptInfo(name="a", preparation=3), load=print),
            "preparation is an int",
        ),  # type: ignore[arg-type]
        (
            PromptOffer(
                info=PromptInfo(
                    name="a", preparation=Preparation(mean=(0,), deviation=(0,), size=(8, 8))
                ),
                load=print,
            ),
            "above 0",
        ),
    ],
)
def test_a_broken_offer_is_named_once_and_the_others_survive(offer: object, told: str) -> None:
    host = _host_with({"broken": offer, "good": PromptOffer(info=CARD.info, load=small_cnn)})
    assert "good" in host.prompts() and "broken" not in host.prompts()
    (problem,) = host.problems
    assert (problem.plugin, problem.place) == ("offering", "prompt 'broken'")
    assert told in problem.error


@pytest.mark.parametrize(
    ("load", "told"), [(lambda: 3, "returned an int"), (lambda: 1 / 0, "ZeroDivisionError")]
)
def test_an_offer_that_cannot_be_read_names_its_plugin(load, told: str) -> None:
    host = _host_with({"broken": PromptOffer(info=CARD.info, load=load)})
    with pytest.raises(PluginError, match=told):
        host.prompt_network("broken")
    (problem,) = host.problems
    assert (problem.plugin, problem.place) == ("offering", "prompt 'broken'")


def test_a_prompt_network_needs_a_graph_of_weights() -> None:
    broken = PromptNetwork(graph=3, info=CARD.info)  # type: ignore[arg-type]
    host = _host_with({"broken": PromptOffer(info=CARD.info, load=lambda: broken)})
    with pytest.raises(PluginError, match="its graph is an int"):
        host.prompt_network("broken")
