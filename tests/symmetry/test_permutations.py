"""Channel permutations: the function stays, everything returns bit for bit, and aligning finds them."""

import copy
import time
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from sane_plugins import symmetry
from sane_plugins.errors import SourceError
from sane_plugins.weights import Layer, Param, WeightGraph, from_module
from sane_plugins.weights.tracing.trace import trace

TORCHVISION = {
    "resnet18": 1.0,
    "vgg11_bn": 1.0,
    "mobilenet_v3_small": 1.0,
    "densenet121": 1.0,
    "convnext_tiny": 1.0,
    "efficientnet_b0": 1.0,
    "vit_b_16": 0.6,
    "swin_t": 0.6,
    "googlenet": 1.0,
    "shufflenet_v2_x0_5": 0.95,
    "squeezenet1_0": 1.0,
    "mnasnet0_5": 1.0,
    "regnet_x_400mf": 1.0,
    "resnext50_32x4d": 1.0,
}


def _awake(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every norm statistics, and every constant tensor values, that show a wrong permutation."""
    rng = torch.Generator().manual_seed(seed)
    for key, tensor in module.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and (key.endswith("running_var") or tensor.std() == 0):
            tensor.data.uniform_(0.5, 1.5, generator=rng)
        elif key.endswith("running_mean"):
            tensor.data.uniform_(-0.5, 0.5, generator=rng)
    return module.eval()


def _write(module: nn.Module, graph: WeightGraph) -> None:
    for key, tensor in module.state_dict(keep_vars=True).items():
        tensor.data.copy_(graph.tensors[graph.ties.get(key, key)])


def _random(graph: WeightGraph, seed: int = 1) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return symmetry.random_permutations(symmetry.permutation_groups(graph), rng)


def _moved(graph: WeightGraph, groups) -> float:
    """Return the share of weights that some group permutes."""
    keys = {place.key for group in groups for place in group.slices}
    return sum(p.size for p in graph.params if p.key in keys) / graph.size


@torch.no_grad()
def _check(module: nn.Module, inputs: torch.Tensor, tolerance: float = 1e-4) -> WeightGraph:
    """Permute all groups at random; assert that something moved and that the function stayed."""
    graph = from_module(copy.deepcopy(module))
    perms = _random(graph)
    permuted = symmetry.permute(graph, perms)
    assert any(not torch.equal(graph.tensors[k], permuted.tensors[k]) for k in graph.tensors)
    before = module(inputs)
    _write(module, permuted)
    after, scale = module(inputs), before.abs().max()
    assert scale > 0
    assert before.isfinite().all()
    assert (before - after).abs().max() / scale < tolerance
    return graph


def _torchvision(name: str) -> nn.Module:
    models = pytest.importorskip("sane_torchvision").import_torchvision().models
    torch.manual_seed(0)
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    return _awake(getattr(models, name)(weights=None, **options))


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_permuted_torchvision_network_computes_the_same(name: str) -> None:
    size = 224 if name == "vit_b_16" else 64
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    graph = _check(_torchvision(name), images)
    assert _moved(graph, symmetry.permutation_groups(graph)) >= TORCHVISION[name] - 0.01


class Tied(nn.Module):
    """A decoder that shares its encoder's matrix, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 12), nn.Linear(12, 11)
        self.twice, self.out = nn.Linear(12, 12), nn.Linear(12, 12)
        self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.table(x)
        x = torch.tanh(self.twice(x)) + x
        return self.head(self.out(torch.tanh(self.twice(x))) * x)


class Concat(nn.Module):
    """Branches that are concatenated, added to another path and flattened."""

    def __init__(self, first: int = 8, groups: int = 4) -> None:
        super().__init__()
        sizes = (first, 16 - first, 16)
        self.a, self.b, self.c = (nn.Conv2d(3, n, 3, padding=1) for n in sizes)
        self.norm, self.group_norm = nn.BatchNorm2d(16), nn.GroupNorm(2, 24)
        self.grouped = nn.Conv2d(16, 24, 3, groups=groups, bias=False)
        self.gate, self.head = nn.Parameter(torch.randn(24, 1, 1)), nn.Linear(24 * 9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.a(x), self.b(x)], dim=1) + functional.relu(self.c(x))
        x = self.group_norm(self.grouped(self.norm(x))) * self.gate
        return self.head(functional.max_pool2d(x, 2).view(x.size(0), -1))


class Attention(nn.Module):
    """Squeeze and excitation by linear layers, and a custom norm over channels that come last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.squeeze, self.excite = nn.Linear(8, 6), nn.Linear(6, 8)
        self.gain = nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        gate = self.excite(functional.silu(self.squeeze(x.mean((2, 3))))).sigmoid()
        x = (x * gate.unsqueeze(-1).unsqueeze(-1)).permute(0, 2, 3, 1)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain
        return self.last(x.permute(0, 3, 1, 2))


class Split(nn.Module):
    """What cannot be followed: chunks, recurrent layers, attention and matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.inside = nn.Linear(6, 16), nn.Linear(16, 8)
        self.rnn, self.mha = nn.LSTM(4, 8, batch_first=True), nn.MultiheadAttention(8, 2)
        self.out, self.turn = nn.Linear(8, 3), nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = self.inside(functional.gelu(self.free(x))).chunk(2, dim=-1)
        x = self.rnn(one * other)[0]
        x = self.mha(x, x, x)[0] @ self.turn
        return self.out(x)


def _up() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, groups=1),
        nn.PReLU(8),
        nn.ConvTranspose2d(8, 12, 2),
        nn.InstanceNorm2d(12),
        nn.ConvTranspose2d(12, 6, 2, groups=3),
        nn.ReLU(),
        nn.Conv2d(6, 12, 3, groups=6),
        nn.BatchNorm2d(12),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 4),
    )


IMAGES, TEXT = torch.randn(2, 3, 10, 10), torch.randint(0, 11, (2, 7))
SMALL = {
    "tied": (Tied, TEXT),
    "concat": (Concat, torch.randn(2, 3, 8, 8)),
    "up": (_up, IMAGES),
    "cut": (lambda: Concat(6, 1), torch.randn(2, 3, 8, 8)),
    "attention": (Attention, IMAGES),
    "split": (Split, torch.randn(2, 5, 6)),
}


def _small(name: str) -> nn.Module:
    torch.manual_seed(0)
    return _awake(SMALL[name][0]()).double()


@pytest.mark.parametrize("name", SMALL)
def test_permuted_small_network_computes_the_same(name: str) -> None:
    inputs = SMALL[name][1]
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    _check(_small(name), inputs, tolerance=1e-12)


def test_what_cannot_be_followed_is_pinned_and_the_rest_is_not() -> None:
    (group,) = symmetry.permutation_groups(from_module(_small("split")))
    assert (group.name, group.size) == ("free.weight", 16)
    assert {(p.key, p.axis) for p in group.slices} == {
        ("free.weight", 0),
        ("free.bias", 0),
        ("inside.weight", 1),
    }


def test_tied_matrix_gets_the_demands_of_both_uses() -> None:
    """The vocabulary is pinned by the output, so only the width may be permuted."""
    groups = symmetry.permutation_groups(from_module(_small("tied")))
    places = {(p.key, p.axis) for group in groups for p in group.slices}
    assert ("table.weight", 1) in places
    assert ("table.weight", 0) not in places
    assert ("head.bias", 0) not in places
    assert {("twice.weight", 0), ("twice.weight", 1)} <= places


def test_blocks_are_those_of_the_group_norm_and_repeats_those_of_flatten() -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.GroupNorm(3, 12), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 4, 2)
    )
    (group,) = symmetry.permutation_groups(from_module(module))
    assert (group.size, group.blocks) == (12, 3)
    assert symmetry.AxisSlice("4.weight", 1, 0, 48, 4) in group.slices
    perm = _random(from_module(module))[group.name]
    assert torch.equal(perm // 4, torch.arange(12) // 4)


def test_concat_cuts_what_it_is_added_to() -> None:
    groups = symmetry.permutation_groups(from_module(_small("cut")))
    sizes = {group.name: (group.size, group.blocks) for group in groups}
    assert sizes == {"a.weight": (6, 1), "b.weight": (10, 1), "grouped.weight": (24, 2)}
    assert symmetry.AxisSlice("c.weight", 0, 6, 10, 1) in groups[1].slices


def test_groups_of_a_convolution_are_permuted_as_wholes() -> None:
    """Four groups of four channels, two from each branch, become six channels each."""
    groups = symmetry.permutation_groups(from_module(_small("concat")))
    assert [(group.name, group.size) for group in groups] == [("a.weight", 2), ("b.weight", 2)]
    assert symmetry.AxisSlice("grouped.weight", 0, 12, 12, 6) in groups[1].slices


def test_border_across_the_groups_of_a_convolution_pins_them() -> None:
    assert symmetry.permutation_groups(from_module(Concat(6, 4))) == ()


@pytest.mark.parametrize("name", SMALL)
def test_permutation_returns_bit_for_bit(name: str) -> None:
    graph = from_module(_small(name))
    perms = _random(graph)
    back = symmetry.permute(symmetry.permute(graph, perms), symmetry.inverse(perms))
    assert all(torch.equal(t, back.tensors[k]) for k, t in graph.tensors.items())


def _cnn(seed: int, width: int = 16) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(8, 6, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(6, 4, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 16, width),
        nn.ReLU(),
        nn.Linear(width, 10),
    )


class Residual(nn.Module):
    """A residual stream, whose matrices have it on both axes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.inner = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.inner:
            x = x + functional.relu(layer(self.norm(x)))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("make", [_cnn, lambda _: _awake(Residual()), lambda _: _small("up")])
def test_align_finds_a_permuted_network_exactly(make, seed: int) -> None:
    torch.manual_seed(seed)
    graph = from_module(make(seed))
    permuted = symmetry.permute(graph, _random(graph, seed))
    rng = torch.Generator().manual_seed(seed)
    found = symmetry.align(permuted, graph, rng)
    assert all(torch.equal(t, found.tensors[k]) for k, t in graph.tensors.items())


def test_align_brings_strangers_closer_and_keeps_their_function() -> None:
    one, other, rng = from_module(_cnn(1)), from_module(_cnn(2)), torch.Generator().manual_seed(0)
    aligned = symmetry.align(other, one, rng)
    assert _distance(aligned, one) < _distance(other, one)
    module, images = _cnn(2), torch.randn(4, 3, 32, 32)
    before = module(images)
    _write(module, aligned)
    assert torch.allclose(before, module(images), atol=1e-5)


def _distance(one: WeightGraph, other: WeightGraph) -> float:
    return sum(float((t - other.tensors[k]).square().sum()) for k, t in one.tensors.items())


def test_same_seed_aligns_to_the_same_bytes() -> None:
    one, other = from_module(_cnn(1)), from_module(_cnn(2))
    twice = [symmetry.align(other, one, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert all(torch.equal(t, twice[1].tensors[k]) for k, t in twice[0].tensors.items())


def test_aligning_a_small_network_is_fast() -> None:
    one, other = from_module(_cnn(1)), from_module(_cnn(2))
    groups, rng = symmetry.permutation_groups(one), torch.Generator().manual_seed(0)
    times = []
    for _ in range(7):
        start = time.thread_time()  # which other programs do not stretch
        symmetry.align(other, one, rng, groups)
        times.append(time.thread_time() - start)
    # Needs some 4 ms; the bound leaves room for a slower processor.
    assert min(times) < 0.05


def test_wrong_permutations_are_refused() -> None:
    graph = from_module(_cnn(0))
    group = symmetry.permutation_groups(graph)[0]
    for perms, message in [
        ({"nobody": torch.arange(3)}, "no such permutation group"),
        ({group.name: torch.zeros(group.size, dtype=torch.int64)}, "permutation of 8 channels"),
        ({group.name: torch.arange(3)}, "3 indices"),
    ]:
        with pytest.raises(SourceError, match=message):
            symmetry.permute(graph, perms)
    with pytest.raises(SourceError, match="networks of one architecture"):
        symmetry.align(graph, from_module(_cnn(0, width=12)), torch.Generator())


def _layer(name: str, kind: str, shape: tuple[int, ...] = (), axis: int = 0, **options) -> Layer:
    param = Param(key=f"{name}.w", role="weight", shape=shape, dtype=torch.float32, axis=axis)
    return Layer(name=name, kind=kind, params=(param,) if shape else (), **options)


def test_layers_may_come_in_any_order_and_matrices_either_way_round() -> None:
    """As from an ONNX file: Gemm keeps its outputs on axis 1."""
    layers = (
        _layer("last", "linear", (6, 2), axis=1, inputs=("act",)),
        _layer("first", "linear", (4, 6), axis=1, inputs=("x",)),
        _layer("x", "input"),
        _layer("act", "pointwise", inputs=("first",)),
        _layer("y", "output", inputs=("last",)),
    )
    graph = WeightGraph(source="test", layers=layers, tensors={})
    (group,) = symmetry.permutation_groups(graph)
    assert group.slices == (
        symmetry.AxisSlice("first.w", 1, 0, 6, 1),
        symmetry.AxisSlice("last.w", 0, 0, 6, 1),
    )


def test_upsampling_along_an_unknown_axis_pins() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.Upsample(scale_factor=2), nn.Linear(12, 2))
    assert symmetry.permutation_groups(from_module(module)) == ()


def test_norm_of_another_axis_pins_even_where_sizes_agree() -> None:
    """A linear layer permutes the last axis, the norm scales the third from the end."""
    module = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm2d(8), nn.Linear(8, 2))
    assert symmetry.permutation_groups(from_module(module)) == ()


def test_network_without_topology_has_no_groups() -> None:
    layers = (_layer("a", "unknown", (4, 3)), _layer("b", "unknown", (2, 4)))
    assert symmetry.permutation_groups(WeightGraph(source="test", layers=layers, tensors={})) == ()


class Branching(nn.Module):
    """Decides by its input, which no symbolic trace can follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_untraceable_network_has_no_topology_and_an_untraceable_part_is_opaque() -> None:
    assert trace(Branching()) is None
    layers = trace(nn.Sequential(nn.Linear(2, 3), Branching(), nn.Linear(3, 2)))
    assert [layer.kind for layer in layers] == ["input", "linear", "opaque", "linear", "output"]
    assert all(b.inputs == (a.name,) for a, b in pairwise(layers))


def test_trace_leaves_training_mode_alone() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Dropout()).train()
    module[1].eval()
    trace(module)
    assert [part.training for part in module] == [True, False]


def test_second_call_of_a_layer_has_its_own_name() -> None:
    names = [layer.name for layer in trace(Tied()) if layer.kind == "linear"]
    assert names == ["twice", "twice#1", "out", "head"]
