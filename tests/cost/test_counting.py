"""Counts from shapes alone: those worked out by hand, and those of torch's own counter on real values."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sane_plugins import Host
from sane_plugins.cost import CostOptions, NetworkCost, cost_of
from sane_plugins.errors import SaneError, SourceError, UsageError

has_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="no torchvision")


class Attention(nn.Module):
    """One head over tokens (B, S, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.project(x).unsqueeze(1).chunk(3, dim=-1)
        return nn.functional.scaled_dot_product_attention(q, k, v)


class Twice(nn.Module):
    """One layer used twice, so its parameters count once and its MACs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6, bias=False)
        self.same = self.layer

    def forward(self, x):
        return self.same(self.layer(x))


def _counted_with_values(module: nn.Module, x: torch.Tensor) -> int:
    """Return the MACs that torch counts in a real pass; attention written out, which it counts in full."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module.eval()(x)
    return counter.get_total_flops() // 2


def test_a_convolution_is_counted_as_by_hand() -> None:
    module = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.Flatten(), nn.Linear(54, 5))
    cost = cost_of(module, CostOptions(size=8, batch=3))
    outputs = 3 * 6 * 3 * 3
    assert cost.inputs == ((3, 4, 8, 8),)
    assert cost.parameters == 6 * 2 * 9 + 6 + 54 * 5 + 5
    assert cost.macs == outputs * 2 * 9 + 3 * 54 * 5
    assert cost.grouped_macs == outputs * 2 * 9
    assert cost.activations == outputs + 3 * 5
    assert cost.layers == 2


def test_peak_memory_holds_what_lives_at_one_time() -> None:
    """Of a chain, the input, which the caller holds, and two tensors beside each other."""
    module = nn.Sequential(
        *(nn.Linear(a, b, bias=False) for a, b in ((4, 100), (100, 50), (50, 2)))
    )
    cost = cost_of(module, CostOptions(batch=7))
    weights = 4 * (400 + 5000 + 100)
    assert cost.weight_bytes == weights
    assert cost.peak_bytes == weights + 4 * 7 * (4 + 100 + 50)


def test_a_change_in_place_and_a_view_take_no_memory() -> None:
    plain = nn.Sequential(nn.Linear(10, 10), nn.Flatten())
    changed = nn.Sequential(nn.Linear(10, 10), nn.ReLU(inplace=True), nn.Unflatten(1, (2, 5)))
    copied = nn.Sequential(nn.Linear(10, 10), nn.ReLU())
    peaks = [cost_of(x, CostOptions()).peak_bytes for x in (plain, changed, copied)]
    assert peaks[0] == peaks[1] == peaks[2] - 40


def test_a_shared_layer_counts_once_in_parameters_and_twice_in_macs() -> None:
    cost = cost_of(Twice(), CostOptions())
    assert (cost.parameters, cost.macs, cost.weight_bytes) == (36, 72, 144)


def test_products_of_attention_are_counted() -> None:
    cost = cost_of(Attention(), CostOptions(shape=(5, 8)))
    assert (
        cost.macs
        == 5 * 8 * 24 + 2 * 5 * 5 * 8
        == _counted_with_values(Attention(), torch.zeros(1, 5, 8))
    )
    assert cost.activations == 5 * 24 + 5 * 5 + 5 * 8


def test_recurrent_layers_are_counted() -> None:
    cost = cost_of(nn.LSTM(8, 16, batch_first=True), CostOptions(shape=(5, 8)))
    assert cost.macs == 5 * 4 * 16 * (8 + 16)


def test_products_with_a_vector_are_counted() -> None:
    class Score(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(6))

        def forward(self, x):
            return x @ self.weight

    assert cost_of(Score(), CostOptions(shape=(6,), batch=4)).macs == 24


def test_the_size_is_found_where_the_network_takes_one_only() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 5), nn.Flatten(), nn.Linear(2 * 24 * 24, 3))
    cost = cost_of(module, CostOptions())
    assert cost.inputs == ((1, 1, 28, 28),)
    assert any("28" in note for note in cost.notes)
    with pytest.raises(SourceError, match="--size"):
        cost_of(module, CostOptions(size=32), "net")


def test_what_asks_for_values_is_told() -> None:
    class Branches(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(SourceError, match="shapes alone"):
        cost_of(Branches(3, 3), CostOptions(), "net")


def test_a_network_that_no_layer_tells_the_input_of_needs_a_shape() -> None:
    module = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4))
    with pytest.raises(SourceError, match="--shape"):
        cost_of(module, CostOptions(), "net")
    assert cost_of(module, CostOptions(shape=(7,))).macs == 7 * 16


def test_the_module_is_left_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)).train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    cost_of(module, CostOptions(size=8))
    assert module.training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"size": 0}, {"shape": (3, -1)}, {"dims": (("a", 0),)}]
)
def test_sizes_are_positive(wrong) -> None:
    with pytest.raises(UsageError):
        CostOptions(**wrong)


@has_torchvision
@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_macs_are_those_of_a_real_pass(name: str) -> None:
    host = Host.installed()
    cost = host.cost(f"torchvision:{name}", CostOptions(size=64))
    module = host.build(f"torchvision:{name}")
    assert cost.macs == _counted_with_values(module, torch.zeros(1, 3, 64, 64)) > 0
    assert cost.parameters == sum(x.numel() for x in module.parameters())


def test_a_recognised_file_costs_what_its_architecture_does(tmp_path) -> None:
    host = Host.installed()
    module = host.build("small-cnn")
    torch.save(module.state_dict(), tmp_path / "net.pt")
    of_file, of_name = host.cost(tmp_path / "net.pt"), host.cost("small-cnn")
    assert (of_file.macs, of_file.parameters) == (of_name.macs, of_name.parameters)
    assert isinstance(of_name, NetworkCost)
    torch.save({"a.weight": torch.zeros(3, 4)}, tmp_path / "unknown.pt")
    with pytest.raises(SaneError, match="--factory"):
        host.cost(tmp_path / "unknown.pt")


@has_torchvision
def test_weights_that_a_name_asks_for_are_not_read() -> None:
    host = Host.installed()
    with_weights = host.cost("torchvision:squeezenet1_1@no/such/file.pth", CostOptions(size=64))
    assert with_weights.macs == host.cost("torchvision:squeezenet1_1", CostOptions(size=64)).macs
