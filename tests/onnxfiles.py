"""What tests of ONNX files share: exporting, running, comparing."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sane_plugins.symmetry import permutation_groups, permute, random_permutations
from sane_plugins.weights import WeightGraph, detokenize, tokenize


def opened(path: Path) -> WeightGraph:
    sane_onnx = pytest.importorskip("sane_onnx")
    pytest.importorskip("onnx")
    graph = sane_onnx.sane_open(path)
    assert graph is not None
    return graph


def saved(graph: WeightGraph, path: Path) -> Path:
    written = pytest.importorskip("sane_onnx").sane_save(graph, path, None, None)
    assert written == path
    return path


def export(module: nn.Module, example: torch.Tensor, path: Path, dynamo: bool, **options) -> Path:
    """Export as users do, in silence: the exporter talks while it works, and the old one is deprecated."""
    with _silent_exporter(dynamo):
        torch.onnx.export(module.eval(), (example,), str(path), dynamo=dynamo, **options)
    return path


def export_and_optimize(
    module: nn.Module, example: torch.Tensor, plain: Path, optimized: Path
) -> None:
    """Export by the newer exporter without its optimisation, which is then applied to the same graph."""
    with _silent_exporter(dynamo=True):
        program = torch.onnx.export(module.eval(), (example,), dynamo=True, optimize=False)
        program.save(str(plain), external_data=False)
        program.optimize()
        program.save(str(optimized), external_data=False)


@contextmanager
def _silent_exporter(dynamo: bool) -> Iterator[None]:
    pytest.importorskip("onnx")
    if dynamo:
        pytest.importorskip("onnxscript")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", io.StringIO())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield


def run(path: Path, *inputs: np.ndarray) -> list[np.ndarray]:
    """Run a model file in onnxruntime."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    # Fused integer kernels saturate on processors without VNNI: sums then depend on the order of channels.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip((x.name for x in session.get_inputs()), inputs, strict=True)))


def assert_returns(path: Path, folder: Path, *inputs: np.ndarray) -> None:
    """Check that reading, cutting and writing back changes nothing at all."""
    graph = opened(path)
    same = detokenize(tokenize(graph, 32), graph)
    before, after = run(path, *inputs), run(saved(same, folder / "same.onnx"), *inputs)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, after, strict=True))


def assert_permutes(path: Path, folder: Path, *inputs: np.ndarray) -> int:
    """Check that exchanging hidden channels leaves the outputs; return how many groups there are."""
    graph, rng = opened(path), torch.Generator().manual_seed(1)
    groups = permutation_groups(graph)
    moved = permute(graph, random_permutations(groups, rng))
    before, after = run(path, *inputs), run(saved(moved, folder / "moved.onnx"), *inputs)
    for one, other in zip(before, after, strict=True):
        assert np.allclose(one, other, atol=1e-4 * max(1, np.abs(one).max(initial=0)), rtol=0)
    return len(groups)
