"""Costs of ONNX files: those of the network they were exported from; open sizes are told, not guessed."""

from pathlib import Path

import pytest
import torch
from onnxfiles import export
from torch import nn

from sane_plugins import Host
from sane_plugins.cost import CostOptions, cost_of
from sane_plugins.errors import SaneError

onnx = pytest.importorskip("onnx")


class Tokens(nn.Module):
    """A convolution to tokens, attention, and a transposed convolution back."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.out = nn.ConvTranspose2d(8, 5, 2, stride=2)

    def forward(self, x):
        x = self.embed(x)
        tokens = self.block(x.flatten(2).transpose(1, 2)).transpose(1, 2)
        return self.out(tokens.reshape(x.shape))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


@pytest.mark.parametrize("make", [_cnn, Tokens])
@pytest.mark.parametrize("dynamo", [False, True])
def test_products_are_those_of_the_exported_network(tmp_path: Path, make, dynamo: bool) -> None:
    torch.manual_seed(0)
    module = make()
    path = export(module, torch.zeros(2, 3, 16, 16), tmp_path / "net.onnx", dynamo)
    of_file = Host.installed().cost(path, CostOptions(batch=2, size=16))
    of_module = cost_of(module, CostOptions(batch=2, size=16))
    assert of_file.macs == of_module.macs
    assert of_file.grouped_macs == of_module.grouped_macs
    assert of_file.activations == of_module.activations
    assert of_file.peak_bytes is not None
    assert of_file.peak_bytes > of_file.weight_bytes > 0


def test_a_chain_holds_the_tensors_beside_each_other(tmp_path: Path) -> None:
    module = nn.Sequential(
        *(nn.Linear(a, b, bias=False) for a, b in ((4, 100), (100, 50), (50, 2)))
    )
    path = export(module, torch.zeros(7, 4), tmp_path / "net.onnx", dynamo=False)
    cost = Host.installed().cost(path, CostOptions(batch=7))
    assert cost.weight_bytes == 4 * (400 + 5000 + 100)
    assert cost.peak_bytes == cost.weight_bytes + 4 * 7 * (4 + 100 + 50)


def test_open_sizes_are_asked_for(tmp_path: Path) -> None:
    axes = {"input": {0: "batch", 2: "height", 3: "width"}}
    names = {"input_names": ["input"], "dynamic_axes": axes}
    path = export(_cnn(), torch.zeros(1, 3, 16, 16), tmp_path / "net.onnx", dynamo=False, **names)
    host = Host.installed()
    with pytest.raises(SaneError, match=r"'height'.*--size"):
        host.cost(path)
    by_size = host.cost(path, CostOptions(size=16, batch=2))
    by_name = host.cost(path, CostOptions(dims=(("height", 16), ("width", 16)), batch=2))
    by_shape = host.cost(path, CostOptions(shape=(3, 16, 16), batch=2))
    assert by_size.inputs == by_name.inputs == by_shape.inputs == ((2, 3, 16, 16),)
    assert (
        by_size.macs
        == by_name.macs
        == by_shape.macs
        == cost_of(_cnn(), CostOptions(size=16, batch=2)).macs
    )


def test_sizes_that_the_file_fixes_are_told(tmp_path: Path) -> None:
    path = export(_cnn(), torch.zeros(1, 3, 16, 16), tmp_path / "net.onnx", dynamo=False)
    cost = Host.installed().cost(path, CostOptions(size=32, batch=4))
    assert cost.inputs == ((1, 3, 16, 16),)
    assert any("fixes" in note for note in cost.notes)


def test_a_shape_that_depends_on_values_is_told(tmp_path: Path) -> None:
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1, 2], [1.0, 2.0])
    nodes = [
        onnx.helper.make_node("NonZero", ["x"], ["found"]),
        onnx.helper.make_node("Cast", ["found"], ["floats"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("MatMul", ["w", "floats"], ["y"]),
    ]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [value("x", onnx.TensorProto.FLOAT, [3, 4])],
        [value("y", onnx.TensorProto.FLOAT, None)],
        [weight],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(SaneError, match="does not follow from the file"):
        Host.installed().cost(tmp_path / "net.onnx")


@pytest.mark.parametrize("operator", ["com.example.Mix", "com.microsoft.BeamSearch"])
def test_operators_without_a_rule_are_named(tmp_path: Path, operator: str) -> None:
    domain, _, name = operator.rpartition(".")
    value = onnx.helper.make_tensor_value_info
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [4, 2], [1.0] * 8)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["x", "w"], ["h"]),
            onnx.helper.make_node(name, ["h"], ["y"], domain=domain),
        ],
        "g",
        [value("x", onnx.TensorProto.FLOAT, ["n", 4])],
        [value("y", onnx.TensorProto.FLOAT, None)],
        [weight],
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid(domain, 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), tmp_path / "net.onnx")
    cost = Host.installed().cost(tmp_path / "net.onnx", CostOptions(batch=3))
    assert cost.macs == 24
    assert cost.peak_bytes is None
    assert any(operator in note for note in cost.notes)


def test_real_files_are_counted(sane_data: Path) -> None:
    """ResNet-50 and DenseNet-121 of onnx's own tests, whose MACs are published."""
    host, folder = Host.installed(), sane_data / "onnx" / "onnx_backend_tests"
    assert host.cost(folder / "light_resnet50.onnx").macs == pytest.approx(4.09e9, rel=0.01)
    assert host.cost(folder / "light_densenet121.onnx").macs == pytest.approx(2.83e9, rel=0.01)
