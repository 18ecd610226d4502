"""What is broken, untrained or half-loaded is found, and networks in working order are called healthy."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from sane_plugins import Host
from sane_plugins.errors import ZooError
from sane_plugins.formats import from_state_dict
from sane_plugins.health import check_network, fit_reference
from sane_plugins.weights import WeightGraph, from_module
from sane_plugins.zoo import import_published

RESNET = "checkpoints/akamaster_pytorch_resnet_cifar10/resnet20-12fca82f.th"
HEALTHY = (
    RESNET,
    "checkpoints/pypi_ccexam/usps.pth",
    "checkpoints/pypi_facenet_pytorch/pnet.pt",
    "checkpoints/pypi_lpips/vgg.pth",
    "checkpoints/pypi_silero_vad/silero_vad_16k.safetensors",
    "small_nets/alpha_beta_crown/mnist_6_100_nat.pth",
    "small_nets/alpha_beta_crown/cifar_cnn_a_mix.model",
)


def states(module: nn.Module) -> WeightGraph:
    return from_state_dict(module.state_dict(), "net")


def lstm() -> nn.Module:
    return nn.ModuleDict({"lstm": nn.LSTM(20, 40, 2), "out": nn.Linear(40, 10)})


def kaiming() -> nn.Module:
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 32, 3, bias=False),
        nn.BatchNorm2d(32),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    for layer in module:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return module


def transformer() -> nn.Module:
    module = nn.TransformerEncoderLayer(64, 4, 128)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.trunc_normal_(parameter, std=0.02)
        elif not bool((parameter == 1).all()):
            nn.init.zeros_(parameter)
    return module


@pytest.fixture(scope="module")
def resnet(sane_data: Path) -> WeightGraph:
    return Host.installed().open(str(sane_data / RESNET))


@pytest.mark.parametrize("file", HEALTHY)
def test_published_networks_are_healthy(sane_data: Path, file: str) -> None:
    result = check_network(Host.installed().open(str(sane_data / file)))
    assert result.is_healthy, result.findings
    assert result.verdict == "healthy"


@pytest.mark.parametrize(
    "make", [lstm, kaiming, transformer, lambda: nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 9))]
)
@pytest.mark.parametrize("with_topology", [False, True])
def test_fresh_modules_were_never_trained(
    make: Callable[[], nn.Module], with_topology: bool
) -> None:
    torch.manual_seed(0)
    module = make()
    result = check_network(from_module(module) if with_topology else states(module))
    assert result.verdict == "never trained"
    assert "as an initialisation draws them" in result.faults[0].text


def test_zoos_tell_the_first_epoch_from_the_last(sane_data: Path) -> None:
    zoo = import_published(sane_data / "zoos" / "mnist-cnn.json")
    some = [e for e in zoo.entries if e.network in {str(i) for i in range(25)}]
    fresh = [check_network(zoo.graph(e)).verdict for e in some if e.checkpoint == "0"]
    assert set(fresh) == {"never trained"}
    learned = [
        e for e in some if e.checkpoint == "12" and float(e.properties["test_accuracy"]) > 0.9
    ]
    assert learned
    assert all(check_network(zoo.graph(e)).is_healthy for e in learned)


def test_half_a_network_that_was_not_loaded_is_noticed(resnet: WeightGraph) -> None:
    torch.manual_seed(0)
    convolutions = [p for p in resnet.params if len(p.shape) == 4]
    drawn = {}
    for param in convolutions[1::2]:
        drawn[param.key] = nn.init.kaiming_normal_(torch.empty(param.shape), mode="fan_out")
    result = check_network(resnet.replace(drawn))
    assert result.verdict == "half loaded"
    assert {f"{name}.weight" for name in result.faults[0].places} <= {*drawn}
    assert "strict=False" in result.faults[0].text


def initial(graph: WeightGraph, path: Path) -> WeightGraph:
    """Return a network as read from the file that `sane-init` would have written."""
    recipe = {"kind": "default, classifier fitted"}
    scores = [{"name": "default 2, classifier fitted", "chosen": True}]
    Host.installed().save(
        graph, path, metadata={"provenance": {"recipe": recipe, "scores": scores}}
    )
    return Host.installed().open(str(path))


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt"])
def test_initial_weights_of_ours_are_no_fault_and_broken_ones_are(
    tmp_path: Path, name: str
) -> None:
    torch.manual_seed(0)
    module = kaiming()
    module[-1].weight.data = module[-1].weight.data @ torch.randn(128, 128)
    module[-1].bias.data = torch.linspace(-3, 3, 10)
    plain = check_network(states(module))
    assert plain.verdict == "half loaded"
    assert "while 1 layer is trained, as after loading" in plain.faults[0].text
    told = check_network(initial(states(module), tmp_path / name))
    assert told.verdict == "initial weights"
    assert told.is_healthy
    assert "sane-init wrote (default 2, classifier fitted)" in told.findings[0].text
    assert set(plain.faults[0].places) <= {*told.findings[0].places}
    fresh = initial(states(kaiming()), tmp_path / f"fresh.{name}")
    assert check_network(fresh).verdict == "initial weights"
    module[0].weight.data[0] = torch.inf
    broken = check_network(initial(states(module), tmp_path / f"broken.{name}"))
    assert broken.verdict == "not finite"


def test_weights_that_were_trained_on_are_initial_no_more(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    initial(states(kaiming()), path)
    torch.save(kaiming().state_dict(), path)
    later = path.with_name("net.pt.provenance.json").stat().st_mtime + 60
    os.utime(path, (later, later))
    assert check_network(Host.installed().open(str(path))).verdict == "never trained"


def test_one_layer_that_was_not_loaded_is_noticed(resnet: WeightGraph) -> None:
    drawn = nn.init.kaiming_uniform_(torch.empty(32, 32, 3, 3), a=5**0.5)
    result = check_network(resnet.replace({"layer2.1.conv1.weight": drawn}))
    assert [x.kind for x in result.faults] == ["half_loaded"]
    assert result.faults[0].places == ("layer2.1.conv1",)


def test_a_fresh_classifier_is_a_note(resnet: WeightGraph) -> None:
    torch.manual_seed(0)
    head = nn.Linear(64, 10)
    fresh = resnet.replace({"linear.weight": head.weight, "linear.bias": head.bias})
    result = check_network(fresh)
    assert result.is_healthy
    assert [x.places for x in result.findings if x.kind == "fresh_classifier"] == [("linear",)]


def changed(graph: WeightGraph, key: str, change: Callable[[torch.Tensor], object]) -> WeightGraph:
    tensor = graph.tensors[key].clone()
    change(tensor)
    return graph.replace({key: tensor})


@pytest.mark.parametrize(
    ("key", "change", "kind"),
    [
        ("layer1.0.conv1.weight", lambda x: x[0, 0, 0].fill_(float("nan")), "not_finite"),
        ("layer1.0.bn1.bias", lambda x: x[:1].fill_(float("-inf")), "not_finite"),
        ("layer3.0.conv1.weight", lambda x: x[1, 2, 1].fill_(3e4), "huge"),
        ("layer3.0.conv1.weight", lambda x: x[1, 2, 1, 1].fill_(500.0), "huge"),
        ("layer2.0.conv2.weight", lambda x: x.fill_(0.01), "constant"),
        ("layer2.0.conv2.weight", lambda x: x[:20].zero_(), "dead_channels"),
        ("layer2.0.bn2.weight", lambda x: x[:20].zero_(), "dead_channels"),
        ("layer2.0.bn2.running_var", lambda x: x.zero_(), "collapsed_norm"),
        ("layer2.0.bn2.running_var", lambda x: x[:1].neg_(), "negative_variance"),
    ],
)
def test_each_fault_is_found_where_it_is(resnet: WeightGraph, key, change, kind) -> None:
    result = check_network(changed(resnet, key, change))
    assert kind in {x.kind for x in result.faults}
    fault = next(x for x in result.faults if x.kind == kind)
    assert any(place.startswith(key.rpartition(".")[0][:9]) for place in fault.places)
    assert check_network(changed(resnet, key, change), ignored=(kind,)).findings


def test_lost_running_statistics_are_noticed(resnet: WeightGraph) -> None:
    lost = {
        p.key: torch.full(p.shape, float(p.role == "running_var"))
        for p in resnet.params
        if p.role.startswith("running")
    }
    assert "unmeasured norm" in check_network(resnet.replace(lost)).verdict


def test_masks_and_types_are_no_faults(resnet: WeightGraph) -> None:
    mask = torch.full((8, 8), float("-inf")).triu(1)
    state = {**nn.Linear(64, 64).state_dict(), "mask": mask}
    assert check_network(from_state_dict(state, "net")).verdict == "never trained"
    for dtype in (torch.float16, torch.bfloat16):
        torch.manual_seed(0)
        assert check_network(states(kaiming().to(dtype))).verdict == "never trained"
    half = {p.key: x.half() for p, x in resnet.items()}
    assert check_network(from_state_dict(half, "net")).is_healthy


def test_a_value_at_the_bound_of_trunc_normal_is_drawn() -> None:
    torch.manual_seed(0)
    module = nn.Linear(256, 256)
    nn.init.trunc_normal_(module.weight, std=0.02)
    nn.init.zeros_(module.bias)
    with torch.no_grad():
        module.weight[3, 5] = 2.0
    assert check_network(states(module)).verdict == "never trained"


def test_a_layer_unlike_the_zoos_is_a_fault_and_a_small_zoo_no_measure(sane_data: Path) -> None:
    zoo = import_published(sane_data / "zoos" / "mnist-cnn.json")
    good = [
        zoo.graph(e)
        for e in zoo.entries
        if e.checkpoint == "12" and float(e.properties["test_accuracy"]) > 0.9
    ]
    reference = fit_reference("zoo", iter(good[:40]))
    graph = good[50]
    assert check_network(graph, reference).is_healthy
    odd = changed(graph, "4.weight", lambda x: x.add_(3 * x.std()))
    assert check_network(odd, reference).verdict == "unlike its kind"
    with pytest.raises(ZooError, match="at least 8"):
        fit_reference("zoo", iter(good[:3]))
