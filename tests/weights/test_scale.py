"""What is divided out comes back, and rides with the tokens."""

import pytest
import torch
from torch import nn

from sane_plugins.autoencoder import SANE, SANEConfig, encode, standardized_tokens
from sane_plugins.weights import (
    Scale,
    apply_scale,
    detokenize,
    fit_scale,
    from_module,
    tokenize,
    undo_scale,
)


def _network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 2))
    nn.init.constant_(network[2].bias, 0.7)
    return network


def test_scale_is_undone_exactly_up_to_rounding() -> None:
    graph = from_module(_network())
    sizes = fit_scale(graph)
    back = undo_scale(apply_scale(graph, sizes), sizes)
    for param, tensor in graph.items():
        torch.testing.assert_close(back.tensors[param.key], tensor, atol=1e-6, rtol=1e-5)


def test_every_slot_is_standardised() -> None:
    graph = from_module(_network())
    changed = apply_scale(graph, fit_scale(graph))
    for slot in graph.slots:
        tensor = changed.tensors[slot.weight.key]
        assert tensor.mean().abs() < 1e-5
        constant = graph.tensors[slot.weight.key].std() == 0
        assert constant or tensor.std(correction=0) == pytest.approx(1, abs=1e-4)


def test_side_information_holds_the_scale() -> None:
    sizes = fit_scale(from_module(_network()))
    back = Scale.from_side(sizes.side)
    torch.testing.assert_close(back.mean, sizes.mean, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(back.deviation, sizes.deviation)


def test_a_network_and_its_double_differ_only_in_side_information() -> None:
    graph = from_module(_network())
    double = graph.replace({param.key: 2 * tensor for param, tensor in graph.items()})
    (one, side), (two, other) = (standardized_tokens(g, 16) for g in (graph, double))
    torch.testing.assert_close(one.values, two.values, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(side, other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_token_pipeline_gives_the_same_on_a_gpu() -> None:
    graph = from_module(_network())
    here, there = tokenize(graph, 16), tokenize(graph, 16, "cuda")
    assert there.values.is_cuda
    assert torch.equal(here.values, there.values.cpu())
    back = detokenize(there, graph)
    assert all(torch.equal(back.tensors[p.key].cpu(), tensor) for p, tensor in graph.items())
    torch.manual_seed(0)
    model = SANE(SANEConfig(token_width=16, model_width=24, heads=2, layers=1)).eval()
    on_cpu = encode(model, graph).values
    on_gpu = encode(model.cuda(), graph).values
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-3, rtol=1e-3)
