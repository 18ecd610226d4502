"""`initialize_` as a pass: a model's initializers are what a module gets, in any of onnx-ir's managers."""

import numpy as np
import pytest
import torch
from graftnets import ResidualNet, trained

import sane_plugins
from sane_plugins.errors import SourceError
from sane_plugins.initialize import InitializeOptions
from sane_plugins.weights import copy_module

ir = pytest.importorskip("onnx_ir", reason="HOST ABSENT: onnx-ir; run tox -e hosts")
QUICK = InitializeOptions(scored=False, rung=6, norm_batches=4)


def _model(module: torch.nn.Module) -> "ir.Model":
    """Return a model with the tensors of a module as initializers."""
    values = []
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            kind = np.float16 if name == "last.weight" else np.float32
            const = ir.tensor(tensor.numpy().astype(kind), name=name)
            values.append(ir.Value(name=name, const_value=const, shape=const.shape))
    x = ir.Value(name="x", shape=ir.Shape([1, 3, 16, 16]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Identity", [x])
    graph = ir.Graph(
        [x], node.outputs, nodes=[node], initializers=values, opset_imports={"": 18}, name="net"
    )
    return ir.Model(graph, ir_version=10)


def _values(model: "ir.Model") -> dict[str, np.ndarray]:
    return {name: x.const_value.numpy().copy() for name, x in model.graph.initializers.items()}


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(80, 3, 16, 16, generator=rng), torch.arange(80) % 5


def test_a_model_gets_what_its_module_would(images) -> None:
    from sane_onnx.initialize_pass import InitializePass

    host, dense = sane_plugins.Host.installed(), trained(ResidualNet((6, 16, 16)))
    module = trained(ResidualNet((6, 8, 12)), 1)
    before = copy_module(module).state_dict()
    model = _model(module)
    step = InitializePass(module, images, [dense], QUICK, host)
    answer = ir.passes.PassManager([step])(model)
    assert answer.modified
    expected = copy_module(module)
    with torch.no_grad():  # as the model holds it
        expected.last.weight.copy_(expected.last.weight.half().float())
    result = sane_plugins.initialize_(expected, images, [dense], QUICK, host)
    assert step.result is not None
    assert step.result.chosen == result.chosen
    for name, value in _values(answer.model).items():
        own = expected.state_dict()[name].numpy()
        assert value.dtype == (np.float16 if name == "last.weight" else np.float32)
        assert np.array_equal(value, own.astype(value.dtype))
    assert all(torch.equal(before[key], x) for key, x in module.state_dict().items())


def test_a_model_of_another_module_stays_as_it_is(images) -> None:
    from sane_onnx.initialize_pass import InitializePass

    model = _model(ResidualNet((6, 8, 12)))
    before = _values(model)
    with pytest.raises(SourceError, match="has the shape"):
        InitializePass(ResidualNet((6, 9, 12)), images).call(model)
    with pytest.raises(SourceError, match=r"is missing, .* and 3 more"):
        InitializePass(torch.nn.Sequential(*[torch.nn.Linear(2, 2)] * 3), images).call(model)
    assert all(np.array_equal(before[name], value) for name, value in _values(model).items())
