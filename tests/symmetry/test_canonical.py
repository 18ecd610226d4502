"""The canonical form: the order of layers and channels follows from what the network computes with."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import nn

from sane_plugins.symmetry import (
    canonical_form,
    canonical_layers,
    permutation_groups,
    permute,
    random_permutations,
)
from sane_plugins.symmetry.invariant_content import squared_norms
from sane_plugins.weights import Layer, WeightGraph, from_module


class Summed(nn.Module):
    """Branches of equal shapes, summed; their order in the code and their names may be exchanged."""

    def __init__(self, names: tuple[str, ...] = ("a", "b", "c"), nested: bool = False) -> None:
        super().__init__()
        self.names, self.nested = names, nested
        self.head = nn.Conv2d(6, 2, 1)
        for name in names:
            self.add_module(name, nn.Conv2d(6, 6, 1))
        self.stem = nn.Conv2d(3, 6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        a, b, c = (getattr(self, name)(x) for name in self.names)
        return self.head(b + (c + a) if self.nested else (a + c) + b)


def shuffled(graph: WeightGraph, seed: int) -> WeightGraph:
    groups = permutation_groups(graph)
    return permute(graph, random_permutations(groups, torch.Generator().manual_seed(seed)), groups)


def values(graph: WeightGraph) -> list[torch.Tensor]:
    return [graph.tensors[param.key].detach() for param in graph.params]


def assert_equal(one: WeightGraph, other: WeightGraph) -> None:
    assert len(one.params) == len(other.params)
    assert all(map(torch.equal, values(one), values(other)))


def test_layers_come_after_what_they_read_and_a_norm_stays_beside_its_layer() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.norm, self.short = (
                nn.Linear(6, 2),
                nn.BatchNorm2d(6),
                nn.Conv2d(3, 6, 1),
            )
            self.second, self.first = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(3, 6, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.short(x) + self.norm(self.second(self.first(x).relu()))
            return self.head(y.mean((2, 3)))

    ordered = canonical_layers(from_module(Reversed()))
    names = list(dict.fromkeys(slot.layer for slot in ordered.slots))
    assert names == ["first", "second", "norm", "short", "head"]


def test_equal_branches_are_told_apart_by_their_values_alone() -> None:
    torch.manual_seed(0)
    one = Summed()
    state = one.state_dict()
    for names, nested in (
        (("c", "a", "b"), False),
        (("b", "c", "a"), True),
        (("x", "a", "q"), True),
    ):
        other = Summed(names, nested)
        renamed = dict(zip(("a", "b", "c"), names, strict=True))
        other.load_state_dict(
            {
                ".".join([renamed.get(p[0], p[0]), p[1]]): x
                for k, x in state.items()
                if (p := k.split("."))
            }
        )
        assert_equal(canonical_form(from_module(one)), canonical_form(from_module(other)))


def test_little_noise_does_not_exchange_branches() -> None:
    torch.manual_seed(0)
    module = Summed()
    before = [p.key for p in canonical_layers(from_module(module)).params]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1 + 1e-4 * torch.randn_like(parameter))
    assert [p.key for p in canonical_layers(from_module(module)).params] == before


def test_names_and_the_order_of_registration_do_not_matter() -> None:
    torch.manual_seed(0)
    graph = from_module(Summed())
    names = {layer.name: f"z{hash(layer.name) % 97}{i}" for i, layer in enumerate(graph.layers)}
    renamed: list[Layer] = [
        replace(x, name=names[x.name], inputs=tuple(names[y] for y in x.inputs))
        for x in graph.layers
    ]
    assert_equal(canonical_form(graph), canonical_form(replace(graph, layers=tuple(renamed[::-1]))))


def _network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, groups=2)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(16 * 9, 20), nn.Linear(20, 4))


@torch.no_grad()
def _dead(module: nn.Module) -> None:
    for layer in (module[0], module[6]):
        layer.weight[::2] = 0
        layer.bias[::2] = 0


@torch.no_grad()
def _binary(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.copy_(parameter.sign())


@torch.no_grad()
def _constant(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.fill_(0.5)


@torch.no_grad()
def _exchanged_roles(module: nn.Module) -> None:
    """Let norms differ in which of scale and shift is 1, and in nothing else."""
    _constant(module)
    module[1].weight.copy_(torch.arange(12) % 2)
    module[1].bias.copy_((torch.arange(12) + 1) % 2)


DEGENERATE = {
    "any": lambda _: None,
    "dead": _dead,
    "binary": _binary,
    "constant": _constant,
    "roles": _exchanged_roles,
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("largest_first", [False, True])
def test_the_order_of_channels_does_not_matter(name: str, largest_first: bool) -> None:
    module = _network()
    DEGENERATE[name](module)
    graph = from_module(module)
    expected = canonical_form(graph, largest_first=largest_first)
    for seed in range(4):
        found = canonical_form(shuffled(graph, seed), largest_first=largest_first)
        assert_equal(found, expected)


def test_the_canonical_form_computes_the_same() -> None:
    module, images = _network().eval(), torch.randn(2, 3, 7, 7)
    form = canonical_form(from_module(module))
    found = torch.func.functional_call(module, form.state_dict(), (images,))
    torch.testing.assert_close(found, module(images), atol=1e-5, rtol=1e-4)
    assert_equal(canonical_form(form), form)


def test_norms_do_not_depend_on_the_order_of_values() -> None:
    rows = torch.randn(50, 10_007, generator=torch.Generator().manual_seed(0))
    rows[0], rows[1] = 0, 1e-30 * rows[1]
    moved = rows[:, torch.randperm(10_007)]
    assert torch.equal(squared_norms(rows), squared_norms(moved))
    torch.testing.assert_close(
        squared_norms(rows), rows.double().square().sum(1), rtol=1e-9, atol=0
    )


class _Watched(Mapping):
    """Counts reads of a graph's tensors."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors, self.reads = tensors, []

    def __getitem__(self, key: str) -> torch.Tensor:
        self.reads.append(key)
        return self.tensors[key]

    def __iter__(self):
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def test_each_tensor_is_read_once_for_the_order_and_once_when_it_is_used() -> None:
    graph = from_module(_network())
    watched = _Watched(graph.tensors)
    form = canonical_form(replace(graph, tensors=watched))
    assert len(watched.reads) == len(set(watched.reads))
    watched.reads.clear()
    assert len(values(form)) == len(watched.reads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_networks_own_weights_stay(dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(dtype)
    before = {key: x.clone() for key, x in module.state_dict().items()}
    canonical_form(from_module(module)).state_dict()
    for key, x in module.state_dict().items():
        assert torch.equal(x, before[key])
