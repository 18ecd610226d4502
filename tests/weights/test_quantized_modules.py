"""Modules with quantised weights: read as the module computes, or missed; loading into them is refused."""

import warnings

import pytest
import torch
from torch import nn

from sane_plugins.errors import SourceError
from sane_plugins.formats import open_file, save_safetensors
from sane_plugins.weights import from_module, load_into

quantization = pytest.importorskip("torch.ao.quantization")


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated; its files will stay
        yield


def dynamic(*layers: nn.Module, dtype: torch.dtype = torch.qint8) -> nn.Module:
    kinds = {nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.RNNCell}
    return quantization.quantize_dynamic(nn.Sequential(*layers), kinds, dtype=dtype)


def static() -> nn.Module:
    body = [
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 2, 3),
        nn.Flatten(),
        nn.Linear(50, 5),
    ]
    model = nn.Sequential(quantization.QuantStub(), *body, quantization.DeQuantStub()).eval()
    model.qconfig = quantization.get_default_qconfig("fbgemm")
    model[3].qconfig = quantization.get_default_qconfig("qnnpack")
    prepared = quantization.prepare(model)
    prepared(torch.randn(2, 3, 5, 5))
    return quantization.convert(prepared)


def embedding() -> nn.Module:
    model = nn.Sequential(nn.EmbeddingBag(10, 12))
    model.qconfig = quantization.float_qparams_weight_only_qconfig
    return quantization.convert(quantization.prepare(model))


MODULES = {
    "linear": lambda: dynamic(nn.Embedding(5, 6), nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4)),
    "linear without bias": lambda: dynamic(nn.Linear(6, 8, bias=False)),
    "linear in half": lambda: dynamic(nn.Linear(6, 8), dtype=torch.float16),
    "nested": lambda: dynamic(nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 3)))),
    "static": static,
    "embedding": embedding,
}
RECURRENT = {
    "LSTM": (lambda: nn.LSTM(6, 4, 2, bidirectional=True), ()),
    "GRU": (lambda: nn.GRU(6, 4), ()),
    "LSTMCell": (lambda: nn.LSTMCell(6, 4), ()),
    "RNNCell": (lambda: nn.RNNCell(6, 4), ()),
}


def answer(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights and biases of a module by what its quantised layers say."""
    wanted = {}
    for name, part in module.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(part, nn.Embedding):
            wanted[f"{prefix}weight"] = part.weight.detach()
        elif callable(getattr(part, "weight", None)):
            wanted[f"{prefix}weight"] = part.weight().dequantize()
            bias = part.bias() if callable(getattr(part, "bias", None)) else None
            if bias is not None:
                wanted[f"{prefix}bias"] = bias.detach()
    return wanted


@pytest.mark.parametrize("name", MODULES)
def test_packed_weights_are_read(name: str, tmp_path) -> None:
    module = MODULES[name]()
    graph, wanted = from_module(module), answer(module)
    assert {param.key for param in graph.params} == wanted.keys()
    assert all(torch.equal(tensor, wanted[param.key]) for param, tensor in graph.items())
    assert graph.coverage == 1
    torch.save(module.state_dict(), tmp_path / "net.pt")
    file = open_file(tmp_path / "net.pt")
    assert [param.key for param in file.params] == [param.key for param in graph.params]
    assert all(torch.equal(tensor, wanted[param.key]) for param, tensor in file.items())
    assert file.coverage == 1
    again = open_file(save_safetensors(graph, tmp_path / "net.safetensors"))
    assert {param.key for param in again.params} == wanted.keys()


def test_the_case_of_the_issue() -> None:
    graph = from_module(MODULES["linear"]())
    assert (graph.size, graph.coverage) == (386, 1)
    assert graph.converted["1.weight"].startswith("dequantised from qint8")


@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_are_unpacked(name: str, dtype: torch.dtype, tmp_path) -> None:
    torch.manual_seed(0)
    plain = RECURRENT[name][0]()
    shapes = {f"0.{key}": tuple(x.shape) for key, x in plain.state_dict().items()}
    module = dynamic(plain, dtype=dtype)
    graph = from_module(module)
    assert {param.key: param.shape for param in graph.params} == shapes
    for key, tensor in plain.state_dict().items():
        assert (graph.tensors[f"0.{key}"] - tensor).abs().max() < 0.01
    assert graph.coverage == 1
    torch.save(module.state_dict(), tmp_path / "net.pt")
    file = open_file(
        tmp_path / "net.pt"
    )  # a file does not name the parts: what is not read is missed
    assert file.size + sum(file.missed.values()) >= graph.size


@pytest.mark.parametrize("name", MODULES)
def test_loading_into_a_quantised_module_is_refused(name: str) -> None:
    module = MODULES[name]()
    before = answer(module)
    with pytest.raises(SourceError, match="keeps it quantised"):
        load_into(module, from_module(MODULES[name]()))
    assert all(torch.equal(tensor, before[key]) for key, tensor in answer(module).items())


class Fp8Linear(nn.Module):
    """A linear layer as transformers has it for FP8: the scale of each tile is a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = (torch.randn(256, 128, generator=generator) * 50).to(torch.float8_e4m3fn)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale_inv = nn.Parameter(torch.tensor([[0.5], [0.25]]), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(256))


def test_scales_in_parameters_are_folded() -> None:
    module = nn.Sequential(Fp8Linear())
    graph = from_module(module)
    scale = torch.tensor([0.5, 0.25]).repeat_interleave(128)[:, None]
    assert {param.key for param in graph.params} == {"0.weight", "0.bias"}
    assert torch.equal(graph.tensors["0.weight"], module[0].weight.detach().float() * scale)


class Wrapped(torch.Tensor):
    """A tensor of codes and a scale, as torchao's classes are."""

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor) -> None:
        self.qdata, self.scale = codes, scale

    def __tensor_flatten__(self):
        return ["qdata", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, parts, _context, _size, _stride):
        return cls(parts["qdata"], parts["scale"])

    @classmethod
    def __torch_dispatch__(cls, function, _types, args=(), _kwargs=None):
        if function in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(args[0].qdata, args[0].scale)
        raise NotImplementedError(function)


class Readable(Wrapped):
    """One that gives its values."""

    def dequantize(self) -> torch.Tensor:
        return self.qdata.float() * self.scale


@pytest.mark.parametrize("kind", [Readable, Wrapped])
def test_tensor_subclasses_are_read_or_missed(kind: type[Wrapped], tmp_path) -> None:
    codes = torch.randint(-9, 9, (8, 4), dtype=torch.int8)
    layer = nn.Linear(4, 8)
    layer.weight = nn.Parameter(kind(codes, torch.full((8, 1), 0.5)), requires_grad=False)
    graph = from_module(nn.Sequential(layer, nn.Linear(8, 2)))
    if kind is Readable:
        assert torch.equal(graph.tensors["0.weight"], codes.float() * 0.5)
        assert (graph.size, graph.coverage) == (32 + 8 + 18, 1)
    else:
        assert graph.missed == {"0.weight": 32}
        assert graph.untouched["0.weight"] == "values of Wrapped are not read"
        with pytest.raises(SourceError, match=r"'0.weight' of .* could not be read"):
            save_safetensors(graph, tmp_path / "net.safetensors")
    # A file needs no class: codes and scales are in it.
    torch.save(nn.Sequential(layer, nn.Linear(8, 2)).state_dict(), tmp_path / "net.pt")
    file = open_file(tmp_path / "net.pt")
    assert torch.equal(file.tensors["0.weight"], codes.float() * 0.5)
    assert file.coverage == 1


class Plain(nn.Module):
    """Tensors that are no parameters and no buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.projection = torch.randn(5, 5)
        self.heads = [torch.randn(3), torch.randn(2)]
        self.named = {"a": torch.randn(7, requires_grad=True)}
        self.temperature = torch.tensor(2.0)  # a lone number
        self.steps = torch.arange(9)
        self.same = self.layer.weight.data  # a parameter's memory
        self.made = self.layer.weight * 2  # computed from one
        self.complex = nn.Parameter(torch.randn(3, 4, dtype=torch.complex64))


def test_weights_outside_the_state_dict_are_missed() -> None:
    graph = from_module(Plain())
    assert graph.size == 20
    assert graph.missed == {
        "complex": 12,
        "projection": 25,
        "heads.0": 3,
        "heads.1": 2,
        "named.a": 7,
    }
    assert "plain attribute" in graph.untouched["projection"]
    assert graph.coverage == 20 / 69


@pytest.mark.parametrize(
    "change",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.spectral_norm,
        lambda layer: nn.utils.prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: layer,
    ],
)
def test_what_torch_keeps_in_attributes_is_not_missed(change) -> None:
    import torch.nn.utils.prune

    module = nn.Sequential(change(nn.Linear(6, 8)), nn.LSTM(8, 4), nn.BatchNorm1d(4))
    module[0](torch.randn(2, 6))
    graph = from_module(module)
    assert graph.coverage == 1
    assert not graph.missed
