"""What a stronger SANE is trained with: hidden tokens, places without a file, canonical order, balance."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretraining.test_pretrain import SHORT, TINY, _KilledError, kill, make
from torch import nn

from sane_plugins.architectures import build
from sane_plugins.autoencoder import SANE, encode, fingerprint, load_sane, read_metadata
from sane_plugins.autoencoder.positions import RELATIVE_WIDTH, relative_features
from sane_plugins.errors import UsageError
from sane_plugins.pretraining import PretrainOptions, log_path, pretrain, read_log
from sane_plugins.pretraining.permuted_dataset import build_datasets
from sane_plugins.pretraining.training_step import _sample_dataset, _seen_and_hidden
from sane_plugins.pretraining.view_batch import draw_hidden
from sane_plugins.progress import silent
from sane_plugins.symmetry import canonical_form, permutation_groups, permute, random_permutations
from sane_plugins.weights import from_module
from sane_plugins.zoo import Entry, Zoo, write_zoo

CNN = {"name": "small_cnn", "channels_in": 1, "classes": 10, "act": "relu", "dropout": 0.0}
RESNET = {"name": "resnet", "channels_in": 1, "classes": 4, "depth": 8, "width": 4}
FILLS = replace(TINY, fills=True)


@pytest.fixture(scope="module")
def zoos(tmp_path_factory) -> list[Zoo]:
    folder = tmp_path_factory.mktemp("zoos")
    return [make(folder, "cnn", CNN, 3), make(folder, "resnet", RESNET, 2)]


def window(seed: int = 0) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(seed)
    graph = from_module(build(RESNET))
    places = TINY.positions(graph.token_layout(TINY.token_width), 0, 12)
    values, side = (torch.randn(1, 12, n, generator=rng) for n in (TINY.token_width, 4))
    return values, side, places[None]


def test_the_encoder_does_not_see_hidden_tokens() -> None:
    torch.manual_seed(0)
    model = SANE(FILLS)
    values, side, places = window()
    hidden = torch.zeros(1, 12, dtype=torch.bool)
    hidden[0, [2, 3, 7]] = True
    values.requires_grad_(True)
    side.requires_grad_(True)
    latents = model.encode(values, side, places, hidden)
    latents.square().sum().backward()
    for read in (values, side):
        assert read.grad is not None
        assert (read.grad[hidden] == 0).all()
        assert (read.grad[~hidden].abs().sum(1) > 0).all()
    changed = torch.where(hidden[..., None], 1e6, values.detach())
    again = model.encode(changed, side.detach(), places, hidden)
    assert torch.equal(again, latents)
    nothing = model.encode(values, side, places, torch.zeros_like(hidden))
    assert torch.equal(nothing, model.encode(values, side, places))


def test_hidden_tokens_are_drawn_as_told() -> None:
    hidden = draw_hidden(4000, 20, 0.3, torch.Generator().manual_seed(0))
    counts = hidden.sum(1)
    assert float((counts == 0).float().mean()) == pytest.approx(0.5, abs=0.04)
    assert float(hidden[counts > 0].float().mean()) == pytest.approx(0.3, abs=0.04)
    edges = (hidden[:, 1:] != hidden[:, :-1]).sum(1)
    assert int(((counts > 3) & (edges <= 2)).sum()) > 600  # runs
    assert int((edges > 4).sum()) > 300  # single tokens
    assert not draw_hidden(50, 1, 0.0, torch.Generator().manual_seed(0)).any()


def test_losses_count_each_token_once() -> None:
    values, clean = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    clean[0, 1] = 3.0
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    mask[1, 2, 2:] = False
    hidden = torch.zeros(2, 3, dtype=torch.bool)
    hidden[0, 1] = True
    found = _seen_and_hidden(values, clean, (mask, hidden), (mask, hidden))
    assert found["values"] == 1.0 and found["hidden"] == 9.0
    halves = [
        _seen_and_hidden(
            values[i : i + 1],
            clean[i : i + 1],
            (mask[i : i + 1], hidden[i : i + 1]),
            (mask, hidden),
        )
        for i in range(2)
    ]
    for name, loss in found.items():
        assert sum(float(half[name]) for half in halves) == pytest.approx(float(loss))


def constant_rows(folder: Path) -> Zoo:
    """A zoo of a network whose rows are copies of one row, so that hidden ones follow from the others."""
    entry = Entry(network="0", checkpoint="0", factory=CNN, properties={})
    return write_zoo(folder / "rows", "rows", [(entry, with_equal_rows(0).state_dict())])


def with_equal_rows(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    module = build(CNN)
    with torch.no_grad():
        for layer in (module[0], module[4], module[11]):
            layer.weight.copy_(layer.weight[:1].expand_as(layer.weight).clone())
    return module


def test_the_loss_of_hidden_tokens_falls(tmp_path) -> None:
    zoo = constant_rows(tmp_path)
    options = PretrainOptions(
        steps=60, batch=8, views=0, lr=1e-2, bf16=False, hidden=1.0, noise=0.0, log_every=6
    )
    model = pretrain([zoo], TINY, options, tmp_path / "a.safetensors")
    lines = read_log(log_path(tmp_path / "a.safetensors"))
    assert lines[-1]["hidden"] < 0.75 * lines[0]["hidden"]
    assert model.config.fills
    again = load_sane(tmp_path / "a.safetensors")
    assert again.config.fills and fingerprint(again) == fingerprint(model)


@pytest.mark.parametrize("more", [{"hidden": 1.0, "accumulate": 2}, {"canonical": True}])
def test_a_killed_run_resumes_to_the_same_bytes(zoos, tmp_path, more) -> None:
    options = replace(SHORT, save_every=2, balance="architectures", side=1.0, **more)
    config = replace(TINY, places="relative")
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    pretrain(zoos, config, options, whole)
    with pytest.raises(_KilledError):
        pretrain(zoos, config, options, cut, report=kill)
    pretrain(zoos, config, options, cut, resume=True)
    assert cut.read_bytes() == whole.read_bytes()
    assert read_metadata(cut)["config"]["places"] == "relative"


def test_architectures_are_drawn_equally_often(zoos, tmp_path) -> None:
    more = [make(tmp_path, f"more{i}", CNN, 2) for i in range(3)]  # four zoos hold the CNN
    datasets = build_datasets(
        [*zoos, *more], TINY, 1, torch.Generator().manual_seed(0), silent, aligned=False
    )
    rng = torch.Generator().manual_seed(1)
    for balance, share in (("architectures", 0.5), ("zoos", 0.2)):
        options = replace(SHORT, balance=balance)
        drawn = Counter(_sample_dataset(datasets, options, rng).zoo for _ in range(3000))
        assert drawn["resnet"] / 3000 == pytest.approx(share, abs=0.04)
        assert {drawn[zoo.name] > 200 for zoo in more} == {True}


def test_canonical_order_is_that_of_what_is_embedded(zoos) -> None:
    rng = torch.Generator().manual_seed(0)
    for dataset, zoo in zip(
        build_datasets(zoos, TINY, 1, rng, silent, canonical=True), zoos, strict=True
    ):
        graph = zoo.graph(dataset.entries[0])
        groups = permutation_groups(graph)
        moved = permute(graph, random_permutations(groups, rng), groups)
        for same in (graph, moved):
            ordered = canonical_form(same)
            for param, tensor in ordered.items():
                assert param.key in {p.key for p in dataset.template.params}
                assert tensor.shape == param.shape
            tokens = build_like(ordered, dataset)
            assert torch.allclose(tokens, dataset.values[0], atol=1e-5)


def build_like(graph, dataset) -> torch.Tensor:
    from sane_plugins.autoencoder import standardized_tokens

    return standardized_tokens(graph, dataset.mask.shape[1])[0].values


def test_relative_places_do_not_know_where_in_a_file_a_block_lies() -> None:
    """The second and third blocks of a stage have the same places, but for their depth."""
    graph = from_module(build({**RESNET, "depth": 20, "width": 8}))
    layout = graph.token_layout(64)
    places = relative_features(layout, 0, len(layout))
    assert places.shape == (len(layout), RELATIVE_WIDTH) and places.isfinite().all()
    names = [slot.weight.key for slot in layout.slots]
    ranges = [layout.spans[names.index(f"layer2.{i}.conv1.weight")] for i in (1, 2)]
    one, two = (places[start:stop] for start, stop in ranges)
    different = (one != two).any(0)
    assert 0 < int(different.sum()) <= 2 * 2 * 7  # depth of token and slot, relative to the network
    part = relative_features(layout, 5, 30)
    assert torch.equal(part, places[5:30])
    norm = layout.spans[names.index("layer2.1.bn1.weight")][0]
    assert not torch.equal(places[norm, -11:], places[ranges[0][0], -11:])


def test_a_sane_with_relative_places_encodes_any_network(zoos, tmp_path) -> None:
    config = replace(TINY, places="relative")
    model = pretrain(zoos[:1], config, SHORT, tmp_path / "a.safetensors")
    other = from_module(build(RESNET))
    latents = encode(model, other, precision="auto").values
    assert latents.isfinite().all()
    assert torch.allclose(latents, encode(model, other).values, atol=0.1)


def test_wrong_shares_are_one_sentence() -> None:
    with pytest.raises(UsageError, match="lies between"):
        PretrainOptions(hidden_share=0.7)
