"""Tokens of any network: one way to cut rows, one layout that is computed once and needs no value."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sane_plugins.autoencoder import SANE, SANEConfig, decode, encode
from sane_plugins.weights import (
    Layer,
    Param,
    WeightGraph,
    apply_scale,
    cut_rows,
    detokenize,
    fit_scale,
    from_module,
    token_blocks,
    tokenize,
)
from sane_plugins.weights import graph as graph_module

SMALL = SANEConfig(
    token_width=16, latent_width=8, model_width=24, heads=2, layers=2, window=8, halo=4
)


@st.composite
def graphs(draw) -> WeightGraph:
    """Networks of matrices of any axis order, with and without bias, in single and double precision."""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tensors, layers = {}, []
    for i in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.integers(1, 9), max_size=4)))
        axis = draw(st.integers(0, 1)) if len(shape) > 1 else 0
        shapes = {"weight": shape}
        if shape and draw(st.booleans()):
            shapes["bias"] = (shape[axis],)
        params = []
        for role, size in shapes.items():
            dtype = draw(st.sampled_from([torch.float32, torch.float64]))
            key = f"{i}.{role}"
            values = torch.randn(size, generator=rng, dtype=dtype) * 3 + 1
            is_strided = len(size) > 1 and draw(st.booleans())
            tensors[key] = values.mT.contiguous().mT if is_strided else values
            params.append(Param(key=key, role=role, shape=size, dtype=dtype, axis=axis))
        layers.append(Layer(name=str(i), kind="unknown", params=tuple(params)))
    return WeightGraph(source="drawn", layers=tuple(layers), tensors=tensors)


@given(graph=graphs(), width=st.integers(1, 40), most=st.integers(1, 12))
@settings(max_examples=150)
def test_streamed_and_whole_tokens_are_cut_alike(graph: WeightGraph, width: int, most: int) -> None:
    scale = fit_scale(graph)
    whole = tokenize(apply_scale(graph, scale), width)
    blocks = list(token_blocks(graph, width, most=most))
    layout = graph.token_layout(width)
    assert torch.equal(torch.cat([block.values for block in blocks]), whole.values.float())
    assert torch.equal(layout.mask(), whole.mask)
    assert torch.equal(layout.slot_numbers(), whole.positions[:, 1])
    assert int(whole.mask.sum()) == graph.size


@given(graph=graphs(), width=st.integers(1, 40))
@settings(max_examples=150)
def test_tokens_give_back_every_bit(graph: WeightGraph, width: int) -> None:
    blank = graph.replace({p.key: torch.full(p.shape, torch.nan) for p in graph.params})
    back = detokenize(tokenize(graph, width), blank)
    for param, tensor in graph.items():
        assert back.tensors[param.key].dtype == tensor.dtype
        assert torch.equal(back.tensors[param.key], tensor)


@given(
    graph=graphs(), width=st.integers(1, 40), start=st.integers(0, 20), length=st.integers(0, 30)
)
def test_a_range_of_positions_is_part_of_all(
    graph: WeightGraph, width: int, start: int, length: int
) -> None:
    layout = graph.token_layout(width)
    start = min(start, len(layout))
    stop = min(start + length, len(layout))
    assert torch.equal(layout.positions(start, stop), layout.positions()[start:stop])


def test_a_piece_of_a_row_starts_at_any_column() -> None:
    (slot,) = from_module(nn.Sequential(nn.Linear(10, 2))).slots
    weight, bias = torch.arange(20.0).view(2, 10), torch.tensor([50.0, 51.0])
    whole, piece = torch.empty(2, 15), torch.empty(2, 6)
    cut_rows(whole, slot, (weight, bias))
    for first in range(10):
        cut_rows(piece, slot, (weight, bias), first=first)
        assert torch.equal(piece, nn.functional.pad(whole, (0, 1))[:, first : first + 6])


class _Unread(Mapping):
    """Tensors that must not be read."""

    def __init__(self, keys) -> None:
        self._keys = tuple(keys)

    def __getitem__(self, key: str) -> torch.Tensor:
        raise AssertionError(f"'{key}' was read")

    def __iter__(self):
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def network() -> WeightGraph:
    torch.manual_seed(0)
    return from_module(nn.Sequential(nn.Conv2d(3, 20, 5), nn.BatchNorm2d(20), nn.Linear(70, 40)))


@pytest.mark.parametrize("scale", ["tensor", "none"])
def test_decoding_reads_no_value_of_the_template(scale) -> None:
    model, graph = SANE(replace(SMALL, scale=scale)).eval(), network()
    latents = encode(model, graph).values
    template = replace(graph, tensors=_Unread(graph.tensors))
    found, expected = decode(model, latents, template), decode(model, latents, graph)
    for param, tensor in expected.items():
        assert torch.equal(found.tensors[param.key], tensor)


def test_slots_are_found_once_for_a_graph_and_what_is_made_of_it(monkeypatch) -> None:
    calls = []
    real = graph_module.find_slots
    monkeypatch.setattr(graph_module, "find_slots", lambda x: calls.append(x) or real(x))
    model, graph = SANE(SMALL).eval(), network()
    decode(model, encode(model, graph).values, graph)
    detokenize(tokenize(graph, 16), apply_scale(graph, fit_scale(graph)))
    assert len(calls) == 1
    assert graph.token_layout(16) is graph.token_layout(16)
    other = replace(graph, layers=graph.layers[-1:])
    assert len(other.slots) == 1
    assert len(other.token_layout(16)) < len(graph.token_layout(16))
