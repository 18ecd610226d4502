"""Connections inferred from widths: they keep what a network computes, and doubt connects nothing."""

from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest
import torch
from torch import nn

from sane_plugins import symmetry
from sane_plugins.architectures import resnet, small_cnn
from sane_plugins.formats import from_state_dict, open_file, save_safetensors
from sane_plugins.weights import WeightGraph, from_module, load_into

RELU = nn.ReLU()
GREY, RGB, ROW = (2, 1, 28, 28), (2, 3, 32, 32), (2, 20)


def _awake(module: nn.Module) -> nn.Module:
    """Give every vector values that show a wrong permutation."""
    for key, tensor in module.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            low, high = (0.5, 1.5) if key.endswith(("weight", "running_var")) else (-1.0, 1.0)
            tensor.data.uniform_(low, high)
    return module.double().eval()


@torch.no_grad()
def _sizes_of_groups(module: nn.Module, inputs: torch.Tensor) -> list[int]:
    """Permute a file's groups; assert that the module computes the same, and return their sizes."""
    graph = from_state_dict(module.state_dict(), "test")
    groups = symmetry.permutation_groups(graph)
    perms = symmetry.random_permutations(groups, torch.Generator().manual_seed(0))
    before = module(inputs)
    load_into(module, symmetry.permute(graph, perms))
    scale = before.abs().max()
    assert before.isfinite().all()
    assert scale > 0
    assert (module(inputs) - before).abs().max() / scale < 1e-9
    return [group.size for group in groups]


def _built(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return _awake(make())


def _inputs(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _lenet() -> nn.Module:
    pool, flatten = nn.MaxPool2d(2), nn.Flatten()
    convs = (nn.Conv2d(1, 6, 5, padding=2), RELU, pool, nn.Conv2d(6, 16, 5), RELU, pool, flatten)
    linears = (nn.Linear(400, 120), RELU, nn.Linear(120, 84), nn.Softmax(-1), nn.Linear(84, 10))
    return nn.Sequential(*convs, *linears)


def _plain_cnn() -> nn.Module:
    widths, layers = (3, 16, 32, 64), []
    for one, other in pairwise(widths):
        layers += [nn.Conv2d(one, other, 3, padding=1), nn.BatchNorm2d(other), nn.PReLU(other)]
        layers += [nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.BatchNorm1d(1024), nn.Linear(1024, 128), RELU, nn.Linear(128, 10)]
    return nn.Sequential(*layers)


CHAINS = {
    "lenet": (_lenet, GREY, [6, 16, 120, 84]),
    "small cnn": (small_cnn, GREY, [8, 6, 4, 20]),
    "plain cnn": (_plain_cnn, RGB, [16, 32, 64, 128]),
    "mlp": (
        lambda: nn.Sequential(
            nn.Linear(20, 64), nn.BatchNorm1d(64), nn.GELU(), nn.Linear(64, 32), nn.Linear(32, 3)
        ),
        ROW,
        [64, 32],
    ),
    "mean of maps": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3),
            RELU,
            nn.Conv2d(16, 32, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 10),
        ),
        RGB,
        [16, 32],
    ),
    "first depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 16, 1), nn.Tanh(), nn.Conv2d(16, 8, 3)
        ),
        RGB,
        [16],
    ),
    "group norm": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3),
            nn.GroupNorm(4, 16),
            RELU,
            nn.Conv2d(16, 32, 3),
            nn.Conv2d(32, 5, 1),
        ),
        RGB,
        [32],
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_connected_by_its_widths(name: str) -> None:
    make, shape, sizes = CHAINS[name]
    assert _sizes_of_groups(_built(make), _inputs(shape)) == sizes


def test_groups_of_a_file_are_those_of_its_module(tmp_path) -> None:
    module = _built(_plain_cnn)
    torch.save(module.state_dict(), tmp_path / "net.pt")
    files = [open_file(tmp_path / "net.pt")]
    files += [open_file(save_safetensors(from_module(module), tmp_path / "net.safetensors"))]
    wanted = _places(from_module(module))
    assert [_places(graph) for graph in files] == [wanted, wanted]


def test_names_and_their_order_do_not_matter() -> None:
    state = _built(_lenet).state_dict()
    renamed = {f"{'zyxwv'[i // 2]}.{k.split('.')[1]}": t for i, (k, t) in enumerate(state.items())}
    renamed = {key: renamed[key] for key in sorted(renamed)}
    groups = symmetry.permutation_groups(from_state_dict(renamed, "test"))
    assert sorted(group.size for group in groups) == [6, 16, 84, 120]


def _places(graph: WeightGraph) -> set[frozenset]:
    return {frozenset(group.slices) for group in symmetry.permutation_groups(graph)}


class Wired(nn.Module):
    """Layers and a function that connects them."""

    def __init__(self, wire: Callable, **layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.wire = nn.ModuleDict(layers), wire

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wire(self.layers, x)


def _residual() -> nn.Module:
    layers = {"a": nn.Linear(20, 16), "b": nn.Linear(16, 16), "c": nn.Linear(16, 3)}
    return Wired(lambda m, x: m["c"](m["b"](m["a"](x).relu()).relu() + m["a"](x)), **layers)


def _hidden_reader() -> nn.Module:
    """All widths chain, and one layer still reads the first value beside the input."""
    layers = {"a": nn.Linear(20, 8), "b": nn.Linear(8, 40), "c": nn.Linear(40, 28)}
    layers |= {"d": nn.Linear(28, 28), "e": nn.Linear(28, 3)}

    def wire(m: nn.ModuleDict, x: torch.Tensor) -> torch.Tensor:
        hidden = m["a"](x).relu()
        return m["e"](m["c"](m["b"](hidden)) + m["d"](torch.cat([hidden, x], 1)))

    return Wired(wire, **layers)


def _dense() -> nn.Module:
    layers = {"a": nn.Linear(20, 8), "b": nn.Linear(28, 5), "c": nn.Linear(33, 3)}

    def wire(m: nn.ModuleDict, x: torch.Tensor) -> torch.Tensor:
        first = torch.cat([x, m["a"](x)], 1)
        return m["c"](torch.cat([first, m["b"](first)], 1))

    return Wired(wire, **layers)


def _padded_shortcut() -> nn.Module:
    layers = {"a": nn.Linear(20, 8), "b": nn.Linear(8, 12), "c": nn.Linear(12, 12)}

    def wire(m: nn.ModuleDict, x: torch.Tensor) -> torch.Tensor:
        hidden = m["a"](x)
        return m["d"](m["c"](m["b"](hidden).relu()) + nn.functional.pad(hidden, (0, 4)))

    return Wired(wire, **layers, d=nn.Linear(12, 3))


def _excited() -> nn.Module:
    layers = {"a": nn.Conv2d(3, 16, 3), "b": nn.Conv2d(16, 4, 1), "c": nn.Conv2d(4, 16, 1)}

    def wire(m: nn.ModuleDict, x: torch.Tensor) -> torch.Tensor:
        x = m["a"](x)
        x = x * m["c"](m["b"](x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return m["d"](x.mean((2, 3)))

    return Wired(wire, **layers, d=nn.Linear(16, 5))


def _tied() -> nn.Module:
    module = nn.Sequential(nn.Linear(20, 8), RELU, nn.Linear(8, 6), RELU, nn.Linear(6, 6))
    module[4].weight = nn.Parameter(module[2].weight[:, :6].detach())
    module[2].weight = nn.Parameter(torch.randn(6, 8))
    module.append(nn.Linear(6, 6))
    module[5].weight = module[4].weight
    return module


class Shuffled(nn.Module):
    """Channels in another order, which is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor([1, 3, 0, 2, 5, 4, 7, 6]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self.order] + x[:, :1]


UNCERTAIN = {
    "residual": (_residual, ROW),
    "hidden reader": (_hidden_reader, ROW),
    "dense": (_dense, ROW),
    "padded shortcut": (_padded_shortcut, ROW),
    "squeeze and excitation": (_excited, RGB),
    "tied": (_tied, ROW),
    "shuffled": (lambda: nn.Sequential(nn.Linear(20, 8), Shuffled(), nn.Linear(8, 3)), ROW),
    "residual network": (lambda: resnet(depth=8), RGB),
    "two heads": (
        lambda: Wired(
            lambda m, x: torch.cat([m["b"](m["a"](x)), m["c"](m["a"](x))], 1),
            a=nn.Linear(20, 8),
            b=nn.Linear(8, 3),
            c=nn.Linear(8, 1),
        ),
        ROW,
    ),
    "autoencoder": (lambda: nn.Sequential(nn.Linear(20, 5), RELU, nn.Linear(5, 20)), ROW),
    "gated halves": (
        lambda: nn.Sequential(nn.Linear(20, 32), nn.GLU(), nn.Linear(16, 12), nn.Linear(12, 3)),
        ROW,
    ),
    "gated halves, flattened": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.GLU(1), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 5)
        ),
        RGB,
    ),
    "shuffled pixels": (
        lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.PixelShuffle(2), nn.Conv2d(4, 7, 3)),
        RGB,
    ),
    "group norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), RELU, nn.Conv2d(16, 5, 3)),
        RGB,
    ),
    "called in a circle": (
        lambda: Wired(
            lambda m, x: m["c"](m["b"](m["a"](m["b"](m["a"](x)).tanh()))),
            a=nn.Linear(20, 8),
            b=nn.Linear(8, 20),
            c=nn.Linear(20, 3),
        ),
        ROW,
    ),
    "moments": (
        lambda: Wired(
            lambda m, x: m["b"](torch.cat([m["a"](x).mean(2), m["a"](x).std(2)], 1)),
            a=nn.Conv1d(4, 8, 3),
            b=nn.Linear(16, 3),
        ),
        (2, 4, 9),
    ),
}


@pytest.mark.parametrize("name", UNCERTAIN)
def test_where_something_else_fits_nothing_is_connected(name: str) -> None:
    make, shape = UNCERTAIN[name]
    assert _sizes_of_groups(_built(make), _inputs(shape)) == []


class RandomNetwork(nn.Module):
    """A network of few widths, whose layers read sums and concatenations, and may be called twice."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = Random(seed)
        self.layers, self.reads = nn.ModuleList(), list[tuple[int, ...]]()
        widths, unread = [rng.choice((5, 7, 20))], {0}
        for _ in range(rng.randint(2, 5)):
            count = rng.choice((1, 1, 1, 2))
            reads = [rng.choice(sorted(unread)), *rng.choices(range(len(widths)), k=count - 1)]
            is_sum = len({widths[i] for i in reads}) == 1
            width = widths[reads[0]] if is_sum else sum(widths[i] for i in reads)
            again = [i for i, x in enumerate(self.layers) if x.in_features == width]
            layer = nn.Linear(width, rng.choice((4, 6, 8, 12, 13, 25)))
            self.layers.append(self.layers[again[0]] if again and rng.random() < 0.1 else layer)
            widths.append(self.layers[-1].out_features)
            unread = (unread - {*reads}) | {len(self.reads) + 1}
            self.reads.append((is_sum, *reads))
        unread -= {0}
        self.last = tuple(sorted(unread))
        self.head = nn.Linear(sum(widths[i] for i in self.last), 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [x]
        for layer, (is_sum, *reads) in zip(self.layers, self.reads, strict=True):
            found = [values[i] for i in reads]
            values.append(layer(sum(found) if is_sum else torch.cat(found, 1)).tanh())
        return self.head(torch.cat([values[i] for i in self.last], 1))


def test_random_networks_compute_the_same_after_what_is_inferred() -> None:
    connected = 0
    for seed in range(400):
        torch.manual_seed(seed)
        network = RandomNetwork(seed).double()
        inputs = torch.randn(2, network.layers[0].in_features, dtype=torch.float64)
        connected += bool(_sizes_of_groups(network, inputs))
    assert connected >= 20
