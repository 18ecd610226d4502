"""A file of a network that a plugin knows is that network; what its content leaves open is said."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from sane_plugins import hookimpl
from sane_plugins.errors import SourceError
from sane_plugins.grafting import Preparation, PromptInfo, PublishedNetwork
from sane_plugins.host import Host

PREPARATION = Preparation(mean=(0.1,) * 3, deviation=(0.3,) * 3, size=(48, 48))
INFO = PromptInfo(
    name="leafnet",
    task="leaves",
    licence="CC0-1.0",
    classes=("oak", "elm", "ash"),
    preparation=PREPARATION,
)


def leafnet(classes: int | None = None) -> nn.Module:
    """Return a network that no library has."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6, eps=0.01),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, classes or 3),
    )


class Leaves:
    """A plugin that knows one network, and offers no weights."""

    def __init__(self, build=leafnet) -> None:
        self.network = PublishedNetwork(info=INFO, build=build)

    @hookimpl
    def sane_published_networks(self) -> dict[str, PublishedNetwork]:
        return {"leafnet": self.network}


@pytest.fixture
def host() -> Host:
    host = Host.installed()
    host.register(Leaves(), "leaves")
    return host


def _saved(module: nn.Module, path, wrap=lambda state: state) -> nn.Module:
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    torch.save(wrap(module.state_dict()), path)
    return module.eval()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": {f"module.{k}": x for k, x in state.items()}, "epoch": 3},
    ],
)
def test_a_file_of_its_names_and_shapes_is_told_as_it(host, tmp_path, wrap) -> None:
    module = _saved(leafnet(), tmp_path / "a.pt", wrap)
    graph = host.open(tmp_path / "a.pt")
    assert graph.recognized == ("leafnet",) and graph.has_topology
    network = host.prompt_network(tmp_path / "a.pt")
    assert network.info.name == str(tmp_path / "a.pt")
    assert (network.info.task, network.info.classes) == ("leaves", INFO.classes)
    assert network.info.preparation == PREPARATION
    assert "taken to be those of leafnet" in network.notes[0]
    images = torch.randn(2, 3, 20, 20)
    assert torch.equal(network.build()(images), module(images))


def test_another_class_count_says_that_its_classes_are_others(host, tmp_path) -> None:
    module = _saved(leafnet(5), tmp_path / "a.pt")
    network = host.prompt_network(tmp_path / "a.pt")
    assert network.graph.recognized == ("leafnet",)
    assert (network.info.task, network.info.licence, network.info.classes) == ("", "", ())
    assert network.info.preparation == PREPARATION
    images = torch.randn(2, 3, 20, 20)
    assert torch.equal(network.build()(images), module(images))


def test_it_is_built_by_name(host) -> None:
    assert isinstance(host.build("leafnet", 7)[-1], nn.Linear)
    assert host.build("leafnet", 7)[-1].out_features == 7
    assert host.build("leafnet")[-1].out_features == 3


@pytest.mark.parametrize("result", [RuntimeError("no"), "no module"])
def test_a_broken_one_is_blamed_and_files_are_read_all_the_same(tmp_path, result) -> None:
    def build(_: int | None) -> nn.Module:
        if isinstance(result, Exception):
            raise result
        return result

    host = Host.installed()
    host.register(Leaves(build), "leaves")
    _saved(leafnet(), tmp_path / "a.pt")
    assert host.open(tmp_path / "a.pt").recognized == ()
    assert any("leafnet" in str(problem) for problem in host.problems)


def test_what_is_no_known_network_is_left_out() -> None:
    class Wrong:
        @hookimpl
        def sane_published_networks(self) -> object:
            return {"a": 3, "b": PublishedNetwork(info=INFO, build=None)}

    host = Host.installed()
    host.register(Wrong(), "wrong")
    assert not {"a", "b"} & host.published_networks().keys()
    assert any("PublishedNetwork" in str(problem) for problem in host.problems)
    with pytest.raises(SourceError):
        host.build("a")


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize(
    ("source", "doubt"),
    [("timm:tf_efficientnet_lite0", "timm tf_efficientnet_lite0"), ("timm:resnet18", "")],
)
def test_others_of_the_same_shapes_that_compute_otherwise_are_told(tmp_path, source, doubt) -> None:
    host = Host.installed()
    torch.manual_seed(0)
    _saved(host.build(source, 4), tmp_path / "a.pt")
    network = host.prompt_network(tmp_path / "a.pt")
    assert len(network.graph.recognized) > 1
    if doubt:
        (note,) = network.notes
        assert doubt in note and "computes otherwise" in note and "--factory" in note
    else:
        assert network.notes == ()
