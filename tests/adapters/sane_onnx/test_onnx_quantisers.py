"""Files of onnxruntime's own quantisers: every weight of the network is read, to within a step."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from onnxfiles import assert_returns, export, opened
from torch import nn

from sane_plugins.weights import WeightGraph

onnx = pytest.importorskip("onnx")
quantization = pytest.importorskip("onnxruntime.quantization")
Type, Format = quantization.QuantType, quantization.QuantFormat

WIDTH, LENGTH = 16, 8


class _Bert(nn.Module):
    """Embeddings, attention, norms and a perceptron: a BERT of one small block."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(50, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.word(words) + self.place.weight)
        scores = self.query(hidden) @ self.key(hidden).transpose(1, 2)
        hidden = hidden + self.out(scores.softmax(-1) @ self.value(hidden))
        return self.head((hidden + self.down(torch.relu(self.up(hidden))))[:, 0])


class _Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 6), nn.Linear(10, 3)
        self.lstm = nn.LSTM(6, 5, bidirectional=True)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embed(words))[0][-1])


def _cnn() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3), nn.Sigmoid()]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pool, nn.Linear(6, 8), nn.LeakyReLU(), nn.Linear(8, 4))


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 4)
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "bert": (_Bert, (2, LENGTH), 50),
    "lstm": (_Lstm, (7, 1), 20),
    "cnn": (_cnn, (1, 3, 12, 12), 0),
    "mlp": (_mlp, (2, 40), 0),
}


def _inputs(name: str, seed: int = 0) -> np.ndarray:
    _, shape, words = NETWORKS[name]
    rng = np.random.default_rng(seed)
    return rng.integers(0, words, shape) if words else rng.normal(size=shape).astype(np.float32)


class _Reader(quantization.CalibrationDataReader):
    def __init__(self, name: str) -> None:
        self._inputs = iter([{"x": _inputs(name, seed)} for seed in range(3)])

    def get_next(self) -> dict | None:
        return next(self._inputs, None)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """Export every network once, in floating point."""
    folder, paths = tmp_path_factory.mktemp("float"), {}
    for name, (build, _, _) in NETWORKS.items():
        torch.manual_seed(0)
        example = torch.from_numpy(_inputs(name))
        options = {"input_names": ["x"], "opset_version": 17}
        paths[name] = export(build(), example, folder / f"{name}.onnx", False, **options)
    return paths


def _dynamic(source: Path, target: Path, _: str, **options: object) -> None:
    quantization.quantize_dynamic(source, target, **options)


def _static(source: Path, target: Path, name: str, form: str = "QDQ", **options: object) -> None:
    options.setdefault("weight_type", Type.QInt8)
    kind = getattr(Format, form)
    quantization.quantize_static(source, target, _Reader(name), kind, **options)


def _n_bits(source: Path, target: Path, _: str, form: str = "QOperator", **options: object) -> None:
    nbits = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")
    options.setdefault("is_symmetric", True)
    quantizer = nbits.MatMulNBitsQuantizer(
        onnx.load(source), block_size=16, quant_format=getattr(Format, form), **options
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(target), False)


def _bnb4(source: Path, target: Path, _: str, kind: int) -> None:
    bnb4 = pytest.importorskip("onnxruntime.quantization.matmul_bnb4_quantizer")
    quantizer = bnb4.MatMulBnb4Quantizer(onnx.load(source), kind, 16)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target), False)


def _half(source: Path, target: Path, _: str) -> None:
    float16 = pytest.importorskip("onnxruntime.transformers.float16")
    half = float16.convert_float_to_float16(onnx.load(source), keep_io_types=True)
    onnx.save(half, target)


def _preprocessed(source: Path, target: Path, _: str) -> None:
    shapes = pytest.importorskip("onnxruntime.quantization.shape_inference")
    middle = target.with_name("pre.onnx")
    shapes.quant_pre_process(source, middle, skip_symbolic_shape=True)
    quantization.quantize_dynamic(middle, target)


class Way(NamedTuple):
    """A way of quantising, and the largest error as a share of a tensor's largest value."""

    quantize: Callable[..., None]
    error: float
    networks: tuple[str, ...] = tuple(NETWORKS)


# Half a step: of 255 over the whole range, or on one side of zero only; of 15 for 4 bits, and so on.
WAYS = {
    "dynamic": Way(_dynamic, 0.005),
    "dynamic, per channel": Way(partial(_dynamic, per_channel=True), 0.005),
    "dynamic, unsigned": Way(partial(_dynamic, weight_type=Type.QUInt8), 0.005),
    "dynamic, 7 bits": Way(partial(_dynamic, reduce_range=True), 0.01),
    "after shape inference": Way(_preprocessed, 0.005),
    "QDQ": Way(_static, 0.005),
    "QDQ, per channel": Way(partial(_static, per_channel=True), 0.005),
    "QDQ, unsigned": Way(
        partial(_static, weight_type=Type.QUInt8, activation_type=Type.QUInt8), 0.005
    ),
    "QDQ, 16 bits": Way(
        partial(
            _static,
            weight_type=Type.QInt16,
            activation_type=Type.QUInt16,
            extra_options={"UseQDQContribOps": True},
        ),
        0.001,
    ),
    "QDQ, 4 bits": Way(partial(_static, weight_type=Type.QInt4), 0.08),
    "QDQ, 4 bits, unsigned": Way(partial(_static, weight_type=Type.QUInt4), 0.08),
    "QDQ, both nodes": Way(partial(_static, extra_options={"AddQDQPairToWeight": True}), 0.005),
    "QOperator": Way(partial(_static, form="QOperator"), 0.005),
    "QOperator, per channel": Way(partial(_static, form="QOperator", per_channel=True), 0.005),
    "float8": Way(
        partial(
            _static,
            weight_type=Type.QFLOAT8E4M3FN,
            activation_type=Type.QFLOAT8E4M3FN,
            calibrate_method=quantization.CalibrationMethod.Distribution,
        ),
        0.07,
        ("cnn", "mlp"),
    ),
    "float16": Way(_half, 0.001),
    "blocks of 4 bits": Way(partial(_n_bits, bits=4), 0.13, ("bert",)),
    "blocks of 4 bits, with zeros": Way(
        partial(_n_bits, bits=4, is_symmetric=False), 0.08, ("bert",)
    ),
    "blocks of 4 bits, QDQ": Way(partial(_n_bits, bits=4, form="QDQ"), 0.13, ("bert",)),
    "blocks of 8 bits": Way(partial(_n_bits, bits=8), 0.01, ("bert",)),
    "blocks of 2 bits": Way(partial(_n_bits, bits=2, is_symmetric=False), 0.35, ("bert",)),
    "blocks of 4 bits, tables too": Way(
        partial(
            _n_bits,
            bits=4,
            op_types_to_quantize=("MatMul", "Gather"),
            quant_axes=(("MatMul", 0), ("Gather", 1)),
        ),
        0.13,
        ("bert",),
    ),
    "FP4": Way(partial(_bnb4, kind=0), 0.18, ("bert",)),
    "NF4": Way(partial(_bnb4, kind=1), 0.16, ("bert",)),
}


def _differences(found: WeightGraph, source: WeightGraph) -> dict[str, float]:
    """Return for each tensor of the source the largest difference, as a share of its largest value."""
    differences: dict[str, float] = {}
    left = {param.key: param for param in found.params}
    for param, tensor in source.items():
        key = min((key for key in left if param.key in key), key=len)
        assert left.pop(key).size == param.size
        value = found.tensors[key].float()
        turned = value.mT if value.ndim > 1 else value
        near = [x for x in (value, turned) if x.shape == tensor.shape]
        near = near or [value.reshape(tensor.shape)]
        largest = min(float((x - tensor).abs().max()) for x in near)
        differences[param.key] = largest / max(float(tensor.abs().max()), 1e-9)
    assert all(param.size == 1 for param in left.values())  # numbers that became initializers
    return differences


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("way", "name"), [(way, name) for way, made in WAYS.items() for name in made.networks]
)
def test_a_quantised_network_is_read_in_full(
    way: str, name: str, sources, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    target = tmp_path / "quantised.onnx"
    WAYS[way].quantize(sources[name], target, name)
    found, source = opened(target), opened(sources[name])
    assert (found.coverage, found.missed) == (1, {})
    differences = _differences(found, source)
    assert max(differences.values()) <= WAYS[way].error, differences
    assert found.converted or way == "float16"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["dynamic, per channel", "QDQ, both nodes", "QOperator"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_quantised_network_returns(way: str, name: str, sources, tmp_path: Path) -> None:
    target = tmp_path / "quantised.onnx"
    WAYS[way].quantize(sources[name], target, name)
    assert_returns(target, tmp_path, _inputs(name, 9))
