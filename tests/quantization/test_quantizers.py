"""Weights as other libraries store them are what these libraries say (make_quantizers.py wrote both)."""

from pathlib import Path

import pytest
import torch
from quantizers import cases
from safetensors.torch import save_file
from torch import nn

from sane_plugins.formats import from_state_dict, open_file, save_safetensors

CASES = cases()


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_the_library(case: str, tmp_path: Path) -> None:
    stored, answer = CASES[case]
    save_file(stored, tmp_path / "net.safetensors")
    torch.save({"model": stored}, tmp_path / "net.pt")
    sources = [open_file(tmp_path / "net.safetensors"), open_file(tmp_path / "net.pt")]
    for graph in (from_state_dict(stored, "state"), *sources):
        assert {param.key for param in graph.params} == answer.keys()
        assert not graph.missed
        assert graph.size == sum(tensor.numel() for tensor in answer.values())
        for param, tensor in graph.items():
            assert param.shape == tuple(tensor.shape) == tuple(answer[param.key].shape)
            assert tensor.dtype == param.dtype
            torch.testing.assert_close(
                tensor.float(), answer[param.key].float(), rtol=1e-6, atol=1e-7
            )
        assert any("quantised" in note for note in graph.notes)
    written = open_file(save_safetensors(graph, tmp_path / "again.safetensors"))
    assert not written.converted
    assert all(torch.equal(tensor, graph.tensors[p.key]) for p, tensor in written.items())


@pytest.mark.parametrize("case", CASES)
def test_modules_that_keep_codes_in_buffers_are_read_alike(case: str) -> None:
    from sane_plugins.weights import from_module

    stored, answer = CASES[case]
    root = nn.Module()
    for key, tensor in stored.items():
        owner, name = root, key
        while "." in name:
            first, name = name.split(".", 1)
            if not hasattr(owner, first):
                owner.add_module(first, nn.Module())
            owner = getattr(owner, first)
            if isinstance(owner, torch.Tensor):
                pytest.skip("a tensor has parts of its own name, which no module has")
        owner.register_buffer(name, tensor)
    graph = from_module(root)
    assert {param.key for param in graph.params} == answer.keys()
    for param, tensor in graph.items():
        torch.testing.assert_close(tensor.float(), answer[param.key].float(), rtol=1e-6, atol=1e-7)
    assert graph.coverage == 1


def test_the_cases_are_of_five_libraries() -> None:
    assert {case.split()[0] for case in CASES} == {
        "bitsandbytes",
        "compressed-tensors",
        "hqq",
        "quanto",
        "torchao",
    }
    assert len(CASES) >= 20
