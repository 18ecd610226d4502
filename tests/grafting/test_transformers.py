"""Transformers into transformers: exact where they can be, whatever the modules are called."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec

import pytest
import torch
from tokennets import HandViT, TorchViT, features, trained
from torch import nn
from torch.nn.functional import interpolate

from sane_plugins.architectures import import_torchvision, vit
from sane_plugins.grafting.transformers import (
    PixelChange,
    graft_attention,
    read_transformer,
    write_mimetic,
)
from sane_plugins.grafting.transformers.grids import resize_grid, resize_kernels

IMAGES = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(3))
Build = Callable[..., nn.Module]


def ours(width: int = 24, **options: int) -> nn.Module:
    return vit(3, 5, size=32, patch=8, width=width, **options)


BUILDS: dict[str, Build] = {
    "split, by hand": HandViT,
    "post-norm, by hand": lambda **options: HandViT(post=True, **options),
    "torch's encoder": TorchViT,
    "fused, class token last": ours,
}


def grafted(source: nn.Module, target: nn.Module, images: torch.Tensor = IMAGES) -> nn.Module:
    torch.manual_seed(1)
    assert graft_attention(target, source, images, IMAGES) is not None
    return target


def correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return how alike two networks' similarities of images are (linear CKA)."""
    grams = [(x - x.mean(0)) @ (x - x.mean(0)).T for x in (one, other)]
    return float((grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm()))


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_a_transformer_in_its_own_architecture_is_itself(build: Build) -> None:
    source, target = trained(build()), trained(build(), 1)
    assert not torch.equal(features(source, IMAGES), features(target, IMAGES))
    grafted(source, target)
    for key, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[key]), key


@pytest.mark.parametrize("width", [28, 32, 48])
@pytest.mark.parametrize("name", ["split, by hand", "torch's encoder", "fused, class token last"])
def test_any_wider_stream_behind_layer_norms_is_exact(name: str, width: int) -> None:
    build = BUILDS[name]
    source = trained(build(heads=4))
    target = grafted(source, build(width=width, heads=4))
    torch.testing.assert_close(
        features(target, IMAGES)[:, :24], features(source, IMAGES), rtol=1e-3, atol=1e-4
    )


def test_twice_the_stream_of_a_post_norm_transformer_is_exact() -> None:
    source = trained(HandViT(post=True))
    target = grafted(source, HandViT(width=48, heads=8, post=True))
    torch.testing.assert_close(
        features(target, IMAGES)[:, :24], features(source, IMAGES), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("options", [{"heads": 6}, {"hidden": 64}], ids=str)
def test_more_heads_or_hidden_channels_are_exact_where_nothing_is_cut(options: dict) -> None:
    source = trained(TorchViT(heads=2))
    with torch.no_grad():  # queries meet keys in 4 directions, as many as a narrower head has
        for layer in source.encoder.layers:
            layer.self_attn.in_proj_weight[:24].view(2, 12, 24)[:, 4:] = 0
            layer.self_attn.in_proj_bias[:24].view(2, 12)[:, 4:] = 0
    target = grafted(source, TorchViT(**{"heads": 2, **options}))
    torch.testing.assert_close(
        features(target, IMAGES), features(source, IMAGES), rtol=1e-3, atol=1e-4
    )


def test_what_was_added_gets_gradients() -> None:
    source = trained(TorchViT(heads=4))
    target = grafted(source, TorchViT(width=32, heads=4, hidden=64))
    for _ in range(2):  # what is read with weight zero gets its gradient in the second step
        target.zero_grad()
        target(IMAGES).square().sum().backward()
        with torch.no_grad():
            for parameter in target.parameters():
                parameter -= 1e-3 * parameter.grad
    for key, parameter in target.named_parameters():
        rows = parameter.grad.flatten(1).abs().sum(1) if parameter.dim() > 1 else parameter.grad
        assert float((rows != 0).double().mean()) > 0.6, key


@pytest.mark.parametrize("heads", [1, 2, 3, 4])
def test_shuffled_heads_and_hidden_channels_graft_the_same_function(heads: int) -> None:
    source = trained(HandViT(width=24, heads=4))
    copy = deepcopy(source)
    order = torch.tensor([2, 0, 3, 1])
    rows = torch.arange(24).view(4, 6)[order].flatten()
    hidden = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for block in copy.blocks:
            for part in (block.a, block.b, block.c):
                part.weight.copy_(part.weight[rows])
                if part.bias is not None:
                    part.bias.copy_(part.bias[rows])
            block.d.weight.copy_(block.d.weight[:, rows])
            block.up.weight.copy_(block.up.weight[hidden])
            block.up.bias.copy_(block.up.bias[hidden])
            block.down.weight.copy_(block.down.weight[:, hidden])
    torch.testing.assert_close(
        features(copy, IMAGES), features(source, IMAGES), rtol=1e-4, atol=1e-5
    )
    one, other = (grafted(x, HandViT(width=24, heads=heads, hidden=20)) for x in (source, copy))
    torch.testing.assert_close(features(one, IMAGES), features(other, IMAGES), rtol=1e-3, atol=1e-4)


def test_a_transformer_goes_from_one_library_into_another() -> None:
    source = trained(TorchViT())
    target = grafted(source, ours(heads=3))
    assert correlation(features(target, IMAGES), features(source, IMAGES)) > 0.99


def test_a_narrower_stream_keeps_more_than_a_fresh_network_or_one_channel_in_two() -> None:
    source = trained(TorchViT(width=48, heads=4))
    torch.manual_seed(0)
    fresh = TorchViT(width=32, heads=4)
    before = correlation(features(fresh, IMAGES), features(source, IMAGES))
    target = grafted(source, fresh)
    assert correlation(features(target, IMAGES), features(source, IMAGES)) > max(before, 0.8)


def test_a_deeper_network_repeats_blocks_in_order_and_stays_near() -> None:
    source, other = trained(TorchViT()), trained(TorchViT(), 5)
    target = grafted(source, TorchViT(depth=4))
    near = correlation(features(target, IMAGES), features(source, IMAGES))
    assert near > correlation(features(other, IMAGES), features(source, IMAGES))
    first, second, third, _ = (layer.linear1.weight for layer in target.encoder.layers)
    assert torch.equal(first, second)
    assert torch.equal(third, source.encoder.layers[1].linear1.weight)


def test_tables_are_interpolated_and_tokens_kept_apart() -> None:
    source = trained(TorchViT(registers=1))
    target = grafted(source, TorchViT(registers=1, size=48), interpolate(IMAGES, (48, 48)))
    assert torch.equal(target.first, source.first)
    assert torch.equal(target.table[:, :2], source.table[:, :2])
    grid = source.table[0, 2:].view(4, 4, -1)
    torch.testing.assert_close(target.table[0, 2:], resize_grid(grid, (6, 6)).flatten(0, 1))


def test_positions_of_a_smooth_table_stay_where_they_are() -> None:
    line = torch.linspace(-1, 1, 8)
    table = torch.stack((line[:, None].expand(8, 8), line.expand(8, 8)), -1)
    smaller = resize_grid(table, (4, 4))
    torch.testing.assert_close(smaller[:, 0, 0], line.view(4, 2).mean(1), rtol=0, atol=0.08)
    assert (smaller[..., 1].diff(dim=1) > 0).all()


@pytest.mark.parametrize("size", [12, 16, 24])
def test_larger_patches_see_in_larger_images_what_smaller_ones_saw(size: int) -> None:
    kernels = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    patches = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    larger = interpolate(patches, (size, size), mode="bilinear", antialias=True)
    resized = resize_kernels(kernels, (size, size))
    torch.testing.assert_close(
        torch.einsum("nchw,dchw->nd", larger, resized),
        torch.einsum("nchw,dchw->nd", patches, kernels),
        rtol=1e-3,
        atol=1e-3,
    )


def test_another_patch_size_keeps_outputs_near() -> None:
    source = trained(TorchViT(patch=8, size=32))
    larger = interpolate(IMAGES, (64, 64), mode="bilinear", antialias=True)
    target = grafted(source, TorchViT(patch=16, size=64), larger)
    error = (features(target, larger) - features(source, IMAGES)).norm() / features(
        source, IMAGES
    ).norm()
    assert float(error) < 0.15


def test_patches_read_images_that_were_standardised_otherwise() -> None:
    change = PixelChange(scale=(2.0, 0.5, 1.5), shift=(0.3, -0.2, 0.1))
    scale, shift = (torch.tensor(x).view(1, 3, 1, 1) for x in (change.scale, change.shift))
    source, target = trained(TorchViT()), TorchViT()
    graft_attention(target, source, IMAGES, IMAGES * scale + shift, change)
    expected = features(source, IMAGES * scale + shift)
    torch.testing.assert_close(features(target, IMAGES), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.ReLU(), nn.Linear(8, 5)),
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softmax(1)),
    ],
    ids=["mlp", "softmax without attention"],
)
def test_networks_without_attention_are_left_as_they_are(module: nn.Module) -> None:
    before = deepcopy(module.state_dict())
    assert read_transformer(module, IMAGES) is None
    assert graft_attention(module, trained(TorchViT()), IMAGES, IMAGES) is None
    assert not write_mimetic(module, IMAGES, torch.Generator().manual_seed(0))
    assert all(torch.equal(before[k], x) for k, x in module.state_dict().items())


def test_a_run_leaves_module_modes_and_gradients_as_they_were() -> None:
    module = TorchViT().train()
    before = deepcopy(module.state_dict())
    assert read_transformer(module, IMAGES) is not None
    assert module.training
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(before[k], x) for k, x in module.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("build", [HandViT, TorchViT], ids=["by hand", "torch's encoder"])
def test_mimetic_attention_correlates_with_the_identity(build: Build) -> None:
    module = build(width=48, heads=2)
    changed = write_mimetic(module, IMAGES, torch.Generator().manual_seed(0))
    assert changed
    network = read_transformer(module, IMAGES)
    assert network is not None
    state = module.state_dict()
    for branch in network.branches:
        if branch.attention is None:
            assert branch.writer.step.key not in changed
    if build is HandViT:
        block = module.blocks[1]
        queries, keys = (part.weight.view(2, 24, 48) for part in (block.a, block.c))
        values, output = block.b.weight, block.d.weight
    else:
        attention = module.encoder.layers[1].self_attn
        queries, keys, _ = (x.view(2, 24, 48) for x in attention.in_proj_weight.chunk(3))
        values, output = attention.in_proj_weight[96:], attention.out_proj.weight
    identity = torch.eye(48)
    for product in queries.transpose(1, 2) @ keys:
        assert 0.2 < float((product * identity).sum() / product.norm() / identity.norm()) < 1
    mixed = output @ values
    assert -1 < float((mixed * identity).sum() / mixed.norm() / identity.norm()) < -0.5
    assert all(torch.isfinite(x).all() for x in state.values())


def test_mimetic_attention_follows_its_generator_and_writes_positions() -> None:
    one, two, three = (TorchViT() for _ in range(3))
    for module, seed in ((one, 0), (two, 0), (three, 1)):
        write_mimetic(module, IMAGES, torch.Generator().manual_seed(seed))
    key = "encoder.layers.0.self_attn.in_proj_weight"
    assert torch.equal(one.state_dict()[key], two.state_dict()[key])
    assert not torch.equal(one.state_dict()[key], three.state_dict()[key])
    assert torch.equal(one.table[:, 1:], three.table[:, 1:])
    assert not torch.equal(one.table[:, :1], three.table[:, :1])


def test_torchvisions_transformer_is_read() -> None:
    if not find_spec("torchvision"):
        pytest.skip("needs torchvision")
    import_torchvision()
    build = pytest.importorskip("torchvision.models").VisionTransformer
    source = trained(build(32, 8, 2, 2, 24, 48, num_classes=5))
    target = grafted(source, build(32, 8, 2, 2, 40, 64, num_classes=5))
    torch.testing.assert_close(
        features(target, IMAGES)[:, :24], features(source, IMAGES), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    "options",
    [
        {"class_token": True},
        {"class_token": False, "global_pool": "avg"},
        {"init_values": 0.1, "no_embed_class": True, "reg_tokens": 2},
        {"qk_norm": True, "qkv_bias": False},
    ],
    ids=str,
)
def test_timms_transformers_are_read(options: dict) -> None:
    if not find_spec("timm"):
        pytest.skip("needs timm")
    import_torchvision()  # which timm imports
    timm = pytest.importorskip("timm")

    def build(**more: int) -> nn.Module:
        sizes = {"img_size": 32, "patch_size": 8, "depth": 2, "num_heads": 4, "embed_dim": 32}
        return timm.models.VisionTransformer(num_classes=5, **{**sizes, **options, **more})

    source, target = trained(build()), build()
    grafted(source, target)
    torch.testing.assert_close(features(target, IMAGES), features(source, IMAGES))
    wider = grafted(source, build(num_heads=4, embed_dim=32, mlp_ratio=6))
    torch.testing.assert_close(
        features(wider, IMAGES), features(source, IMAGES), rtol=1e-3, atol=1e-4
    )
