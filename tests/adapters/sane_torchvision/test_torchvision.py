"""Torchvision's networks by name: opened, built for other class counts, given weights, refused."""

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import sane_torchvision
import torch
from safetensors.torch import save_file
from torch import nn

from sane_plugins import Host
from sane_plugins.architectures import set_input_channels
from sane_plugins.cli.initialization.targets import resolve_network
from sane_plugins.errors import SaneError, SourceError, UsageError
from sane_plugins.tasks import load_task
from sane_plugins.weights import detokenize, from_module, load_into, tokenize

ROOT = Path(__file__).parents[3]

# Name, and the smallest image side that it takes without complaint.
NETWORKS = {
    "resnet18": 64,
    "squeezenet1_0": 64,
    "squeezenet1_1": 64,
    "densenet121": 64,
    "googlenet": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "efficientnet_b0": 64,
    "shufflenet_v2_x0_5": 64,
    "mnasnet0_5": 64,
    "regnet_y_400mf": 64,
    "inception_v3": 128,
}


@pytest.fixture(autouse=True)
def _torchvision() -> None:
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    sane_torchvision.import_torchvision()


def _built(source: str, classes: int | None = None) -> nn.Module:
    module = sane_torchvision.sane_build(source, classes)
    assert module is not None
    return module.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_value_of_a_network_becomes_a_token_and_returns(name: str) -> None:
    graph = sane_torchvision.sane_open(f"torchvision:{name}")
    assert graph.has_topology
    tokens = tokenize(graph, 128)
    assert int(tokens.mask.sum()) == graph.size
    blank = graph.replace({p.key: torch.full(p.shape, 7.0) for p in graph.params})
    back = detokenize(tokens, blank)
    assert all(torch.equal(back.tensors[p.key], value) for p, value in graph.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_built_for_seven_classes(name: str) -> None:
    module = _built(f"torchvision:{name}", 7)
    size = NETWORKS[name]
    with torch.no_grad():
        assert module(torch.randn(1, 3, size, size)).shape == (1, 7)


def test_second_heads_are_not_built() -> None:
    module = _built("torchvision:googlenet", 7).train()
    assert module(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def test_weights_of_a_file_are_read(tmp_path: Path) -> None:
    module = _built("torchvision:resnet18")
    torch.save(module.state_dict(), tmp_path / "w.pth")
    source = f"torchvision:resnet18@{tmp_path / 'w.pth'}"
    graph = sane_torchvision.sane_open(source)
    assert graph.source == source
    assert not graph.notes
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(_built(source)(images), module(images))
    for key, value in module.state_dict().items():
        assert torch.equal(graph.state_dict()[key], value)


def test_the_class_count_of_a_file_is_found(tmp_path: Path) -> None:
    torch.save(_built("torchvision:squeezenet1_0", 10).state_dict(), tmp_path / "w.pth")
    graph = sane_torchvision.sane_open(f"torchvision:squeezenet1_0@{tmp_path / 'w.pth'}")
    assert graph.tensors["classifier.1.weight"].shape[0] == 10


def test_weights_for_another_class_count_keep_all_but_the_classifier(
    tmp_path: Path, caplog
) -> None:
    given = _built("torchvision:resnet18")
    torch.save(given.state_dict(), tmp_path / "w.pth")
    with caplog.at_level(logging.WARNING):
        module = _built(f"torchvision:resnet18@{tmp_path / 'w.pth'}", 7)
    assert "freshly initialised" in caplog.text
    assert "fc.bias, fc.weight" in caplog.text
    for key, value in given.state_dict().items():
        assert torch.equal(module.state_dict()[key], value) != key.startswith("fc."), key


def test_second_heads_in_a_file_are_kept_or_named(tmp_path: Path, caplog) -> None:
    models = sane_torchvision.import_torchvision().models
    full = models.googlenet(weights=None, init_weights=False, num_classes=10)
    torch.save(full.state_dict(), tmp_path / "w.pth")
    source = f"torchvision:googlenet@{tmp_path / 'w.pth'}"
    assert sane_torchvision.sane_open(source).state_dict().keys() == full.state_dict().keys()
    with caplog.at_level(logging.WARNING):
        _built(source, 10)
    assert "aux1.conv.conv.weight" in caplog.text


def test_published_weights_come_from_the_cache(tmp_path: Path, monkeypatch) -> None:
    module = _built("torchvision:squeezenet1_1")
    name = sane_torchvision.import_torchvision().models.SqueezeNet1_1_Weights.DEFAULT.url
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(module.state_dict(), tmp_path / "hub" / "checkpoints" / name.rpartition("/")[2])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for weights in ("DEFAULT", "IMAGENET1K_V1"):
        built = _built(f"torchvision:squeezenet1_1@{weights}")
        assert all(torch.equal(v, built.state_dict()[k]) for k, v in module.state_dict().items())


def test_no_network_is_told(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(SourceError, match=r"no route to host.*fetch the file elsewhere"):
        sane_torchvision.sane_open("torchvision:resnet18@DEFAULT")


@pytest.mark.parametrize(
    ("source", "classes", "said"),
    [
        ("torchvision:resnet81", None, "did you mean .*resnet18"),
        ("torchvision:", None, "no such network"),
        ("torchvision:resnet18@nothing", None, "IMAGENET1K_V1"),
        ("torchvision:resnet18@nothing.pth", None, "does not exist"),
        ("torchvision:raft_small", 7, "no classes"),
        ("torchvision:resnet18,classes=7", 10, "7 classes follow the name, but 10 .* leave out"),
    ],
)
def test_refusals(source: str, classes: int | None, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        sane_torchvision.sane_build(source, classes)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(_built("torchvision:shufflenet_v2_x0_5").state_dict(), tmp_path / "other.pth")
    for name in ("shufflenet_v2_x1_0", "resnet18"):
        with pytest.raises(SourceError, match="check which network the weights are from"):
            sane_torchvision.sane_open(f"torchvision:{name}@{tmp_path / 'other.pth'}")


def test_weights_of_a_deeper_network_are_refused(tmp_path: Path) -> None:
    torch.save(_built("torchvision:resnet34").state_dict(), tmp_path / "deeper.pth")
    for classes in (None, 7):
        with pytest.raises(SourceError, match="the network lacks it"):
            sane_torchvision.sane_build(f"torchvision:resnet18@{tmp_path / 'deeper.pth'}", classes)


@pytest.mark.parametrize("source", ["resnet81", Path("torchvision:x"), nn.Linear(1, 1), {}, None])
def test_other_sources_are_left_to_others(source: object) -> None:
    assert sane_torchvision.sane_open(source) is None
    assert sane_torchvision.sane_build(source, 7) is None


def test_a_name_alone_is_built_where_it_is_no_family_of_ours() -> None:
    assert sane_torchvision.sane_build("squeezenet1_1,channels=1", 7) is not None
    with pytest.raises(SourceError, match=r"no such network.*did you mean .*resnet18"):
        Host.installed().build("resnet81")
    for other in ("small-cnn", "small_cnn", "resnet", "timm:resnet10t", "a.pt", "a/b", ""):
        assert sane_torchvision.sane_build(other, None) is None


def test_a_built_network_takes_a_graph_back() -> None:
    one, other = _built("torchvision:mnasnet0_5", 7), _built("torchvision:mnasnet0_5", 7)
    load_into(other, from_module(one))
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(one(images), other(images))


def test_importing_the_adapter_imports_no_torch() -> None:
    check = (
        "import sys, sane_torchvision; sys.exit(bool({'torch', 'torchvision'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_a_missing_torchvision_is_told() -> None:
    check = """
import sys, sane_torchvision
from sane_plugins import Host
from sane_plugins.cli.initialization.targets import resolve_network
from sane_plugins.errors import SaneError, SourceError
from sane_plugins.tasks import load_task
class Missing:
    def find_spec(self, name, *_):
        if name == "torchvision":
            raise ModuleNotFoundError("no", name=name)
sys.meta_path.insert(0, Missing())
try:
    sane_torchvision.sane_open("torchvision:resnet18")
except SourceError as error:
    sys.exit(0 if "pip install 'sane-plugins[torchvision]'" in str(error) else 2)
sys.exit(3)
"""
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


# Other images, and every name.


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit_b_32", "densenet121"])
def test_a_grey_image_gives_what_its_repetition_gave(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = sane_torchvision.sane_build(f"torchvision:{name}", 5)
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    source = f"torchvision:{name},channels=1@{tmp_path / 'w.pth'}"
    gray = sane_torchvision.sane_build(source, None)
    image = torch.randn(
        2, 1, 224 if name.startswith("vit") else 64, 224 if name.startswith("vit") else 64
    )
    with torch.inference_mode():
        before = whole.eval()(image.expand(-1, 3, -1, -1))
        after = gray.eval()(image)
    assert torch.allclose(before, after, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels_can_be_read(channels: int) -> None:
    module = sane_torchvision.sane_build(
        f"torchvision:squeezenet1_1,classes=7,channels={channels}", None
    )
    with torch.inference_mode():
        assert module(torch.randn(1, channels, 64, 64)).shape == (1, 7)
    graph = sane_torchvision.sane_open(f"torchvision:squeezenet1_1,channels={channels}")
    assert graph.params[0].shape[1] == channels


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("sizes=3", "channels=N or size=N"),
        ("channels=0", "classes=N"),
        ("channels=", "classes=N"),
    ],
)
def test_odd_options_are_refused(options: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        sane_torchvision.sane_build(f"torchvision:resnet18,{options}", None)


def test_detection_networks_read_other_images() -> None:
    """Exact where all channels are standardised alike; the layers below the heads run anywhere."""
    torch.manual_seed(0)
    name = "torchvision:ssdlite320_mobilenet_v3_large"
    whole, gray = _built(f"{name},classes=4"), _built(f"{name},classes=4,channels=1")
    state = whole.state_dict()
    key = "backbone.features.0.0.0.weight"
    gray.load_state_dict({**state, key: state[key].sum(1, keepdim=True)})
    image = torch.rand(1, 80, 90)
    with torch.inference_mode():
        before, after = (
            net.backbone(net.transform([x])[0].tensors)
            for net, x in ((whole, image.expand(3, -1, -1)), (gray, image))
        )
    assert all(torch.allclose(before[k], after[k], atol=1e-4) for k in before)


def test_every_convolution_that_reads_images_is_exchanged() -> None:
    torch.manual_seed(0)
    gray = _built("torchvision:raft_small,channels=1")
    frames = torch.randn(2, 1, 1, 128, 128)
    with torch.inference_mode():
        assert gray(*frames, num_flow_updates=1)[0].shape == (1, 2, 128, 128)


def test_detection_of_grey_images_says_how_they_are_standardised(caplog) -> None:
    source = "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn,classes=3,channels=1"
    with caplog.at_level(logging.WARNING):
        module = _built(source)
    assert "standardised with the average" in caplog.text
    assert len(module.transform.image_mean) == len(module.transform.image_std) == 1


@pytest.mark.parametrize(
    "name",
    [
        "lraspp_mobilenet_v3_large",
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        pytest.param("ssd300_vgg16", marks=pytest.mark.slow),
    ],
)
def test_the_class_count_of_a_file_is_found_for_other_tasks(name: str, tmp_path: Path) -> None:
    given = _built(f"torchvision:{name}", 5).state_dict()
    torch.save(given, tmp_path / "w.pth")
    found = sane_torchvision.sane_open(f"torchvision:{name}@{tmp_path / 'w.pth'}").state_dict()
    assert found.keys() == given.keys()
    assert all(torch.equal(found[key], value) for key, value in given.items())


def test_the_channel_count_of_a_file_is_found_and_changed(tmp_path: Path) -> None:
    given = _built("torchvision:squeezenet1_1,classes=5,channels=2").state_dict()
    torch.save(given, tmp_path / "w.pth")
    source = f"@{tmp_path / 'w.pth'}"
    same = _built(f"torchvision:squeezenet1_1{source}").state_dict()
    assert all(torch.equal(same[key], value) for key, value in given.items())
    wider = _built(f"torchvision:squeezenet1_1,classes=9,channels=4{source}")
    kernel = given["features.0.weight"]
    assert torch.equal(wider.features[0].weight, torch.cat([kernel, kernel], 1) / 2)
    assert torch.equal(
        wider.state_dict()["features.3.squeeze.bias"], given["features.3.squeeze.bias"]
    )
    assert wider(torch.randn(1, 4, 64, 64)).shape == (1, 9)


def test_a_target_has_given_weights_and_other_channels(tmp_path: Path) -> None:
    """Names of networks and functions hold dots and slashes, as files do."""
    torch.save(_built("torchvision:squeezenet1_1", 5).state_dict(), tmp_path / "w.pth")
    source, task = f"torchvision:squeezenet1_1,channels=1@{tmp_path / 'w.pth'}", load_task("digits")
    target = resolve_network(Host.installed(), source, None, task, resize=True)
    network = target.module()
    assert network.features[0].in_channels == target.task.channels == 1
    assert network.classifier[1].out_channels == 10
    with pytest.raises(SourceError, match="leave out classes=N"):
        resolve_network(
            Host.installed(), "torchvision:resnet18,classes=7", None, task, resize=False
        )
    function = "torch.nn.functional:relu"
    with pytest.raises(SaneError, match="relu") as refused:
        resolve_network(Host.installed(), function, None, task, resize=False)
    assert "does not exist" not in str(refused.value)


class Mixed(nn.Module):
    """Reads its images twice, once after it has used their number of channels."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Conv2d(7 if again else 4, 2, 1)
        self.again = again

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = self.first(image)
        if self.again:
            return self.last(torch.cat([hidden, image], 1))
        return self.last(hidden * image.mean((1, 2, 3), keepdim=True)) + image[:, 2:]


@pytest.mark.parametrize("again", [True, False])
def test_networks_that_use_channels_otherwise_are_refused(again: bool) -> None:
    with pytest.raises(SourceError, match="1 input channels were asked for"):
        set_input_channels(Mixed(again), 1, "here")


def test_weights_in_shards_are_read(tmp_path: Path) -> None:
    state = _built("torchvision:squeezenet1_1").state_dict()
    keys = list(state)
    files = {key: f"part-{i % 2}.safetensors" for i, key in enumerate(keys)}
    for file in set(files.values()):
        save_file({k: state[k] for k in keys if files[k] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    found = _built(f"torchvision:squeezenet1_1@{index}").state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items())


def _cached(weights: Any, state: Mapping[str, torch.Tensor], home: Path) -> None:
    (home / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(dict(state), home / "hub" / "checkpoints" / weights.url.rpartition("/")[2])


def test_published_weights_keep_what_they_ask_of_the_network(tmp_path: Path, monkeypatch) -> None:
    """GoogLeNet's were trained on images standardised in another way."""
    models = sane_torchvision.import_torchvision().models
    full = models.googlenet(weights=None, init_weights=False)
    _cached(models.GoogLeNet_Weights.DEFAULT, full.state_dict(), tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for classes in (None, 7):
        assert _built("torchvision:googlenet@DEFAULT", classes).transform_input
    with pytest.raises(SourceError, match="it works on 3 channels elsewhere too"):
        _built("torchvision:googlenet,channels=1@DEFAULT")


def test_published_weights_of_quantised_networks_are_read_unquantised(
    tmp_path: Path, monkeypatch
) -> None:
    models = sane_torchvision.import_torchvision().models
    given = _built("torchvision:resnet18").state_dict()
    _cached(models.ResNet18_Weights.IMAGENET1K_V1, given, tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    graph = sane_torchvision.sane_open("torchvision:quantized_resnet18@DEFAULT")
    assert any("before quantisation" in note for note in graph.notes)
    assert all(torch.equal(graph.tensors[param.key], given[param.key]) for param in graph.params)


def test_a_silent_server_is_not_waited_for(tmp_path: Path, monkeypatch, capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def ask(*_: object, **__: object) -> None:
            with socket.create_connection(server.getsockname()) as line:
                line.recv(1)

        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr("torch.hub.urlopen", ask)
        monkeypatch.setattr("sane_torchvision.published.TIMEOUT", 0.2)
        said = r"resnet18@IMAGENET1K_V1: https://\S+ cannot be fetched.*name it as torchvision:resnet18@FILE"
        with pytest.raises(SourceError, match=said):
            sane_torchvision.sane_open("torchvision:resnet18@DEFAULT")
    assert not capsys.readouterr().out


def test_the_table_has_every_name_and_all_are_exact() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "torchvision_models.json").read_text())
    known = sane_torchvision.import_torchvision()
    if results["versions"]["torchvision"].partition("+")[0] != known.__version__.partition("+")[0]:
        pytest.skip(f"the table was made with torchvision {results['versions']['torchvision']}")
    assert results["networks"].keys() == set(known.models.list_models())
    assert all(x.get("exact") or x.get("failed") for x in results["networks"].values())
    assert all(x["groups"] or x["untraced"] for x in results["networks"].values() if x.get("exact"))
    assert sum(bool(x.get("exact")) for x in results["networks"].values()) >= 120


def test_a_name_without_weights_is_the_same_network_each_time() -> None:
    torch.manual_seed(1)
    first = sane_torchvision.sane_open("torchvision:squeezenet1_1")
    state = torch.random.get_rng_state()
    second = sane_torchvision.sane_open("torchvision:squeezenet1_1")
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(second.tensors[p.key], value) for p, value in first.items())
