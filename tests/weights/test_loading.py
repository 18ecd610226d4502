"""Loading is exact or refused: whatever computes a module's tensors, it computes with what was asked for."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import HAND_MADE
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from sane_plugins import Host
from sane_plugins.errors import SourceError
from sane_plugins.formats import from_state_dict
from sane_plugins.weights import WeightGraph, from_module, load_into, load_nearest


def _old(norm: Callable[..., nn.Module], layer: nn.Module, **options: object) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its older norms deprecated
        return norm(layer, **options)


def _trained(network: nn.Module, *shape: int) -> nn.Module:
    """Let power iterations converge."""
    with torch.no_grad():
        for _ in range(30):
            network(torch.randn(shape))
    return network


def _spectral() -> nn.Module:
    body = parametrizations.spectral_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 4)
    return _trained(nn.Sequential(*body), 4, 6)


def _old_spectral() -> nn.Module:
    return _trained(nn.Sequential(_old(spectral_norm, nn.Conv2d(4, 4, 3))), 1, 4, 5, 5)


def _old_transposed() -> nn.Module:
    layer = nn.ConvTranspose2d(4, 4, 3)
    return _trained(nn.Sequential(_old(spectral_norm, layer)), 1, 4, 5, 5)


def _pruned_directions() -> nn.Module:
    network = nn.Sequential(_old(weight_norm, nn.Linear(6, 8)))
    prune.l1_unstructured(network[0], "weight_v", 0.4)
    return network


class _Scaled(nn.Module):
    def forward(self, x):
        return 3 * x

    def right_inverse(self, x):
        return x / 3


def _custom_over_norm() -> nn.Module:
    layer = parametrizations.weight_norm(nn.Linear(6, 8))
    return nn.Sequential(parametrize.register_parametrization(layer, "weight", _Scaled()))


class _TiedNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (_old(weight_norm, nn.Linear(5, 5)) for _ in range(2))
        self.other.weight_g, self.other.weight_v = self.one.weight_g, self.one.weight_v
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x):
        return self.norm(self.other(self.one(x)))


NORMED: Mapping[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv1d(3, 4, 2))),
    "weight norm, one length": lambda: nn.Sequential(
        parametrizations.weight_norm(nn.Linear(6, 8), dim=None)
    ),
    "older weight norm": lambda: nn.Sequential(_old(weight_norm, nn.Linear(6, 8))),
    "older weight norm, columns": lambda: nn.Sequential(
        _old(weight_norm, nn.ConvTranspose2d(6, 8, 3), dim=1)
    ),
    "older weight norm, one length": lambda: nn.Sequential(
        _old(weight_norm, nn.Linear(6, 8), dim=None)
    ),
    "tied weight norms": _TiedNorms,
    "custom over weight norm": _custom_over_norm,
    "half": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 8))).half(),
}
CONSTRAINED: Mapping[str, Callable[[], nn.Module]] = {
    "spectral norm": _spectral,
    "spectral norm, not converged": HAND_MADE["spectral"],
    "spectral norm of a transposed convolution": lambda: nn.Sequential(
        parametrizations.spectral_norm(nn.ConvTranspose2d(6, 6, 3))
    ),
    "older spectral norm": _old_spectral,
    "older spectral norm of a transposed convolution": _old_transposed,
    "orthogonal": lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(9, 7))),
    "Cayley": lambda: nn.Sequential(
        parametrizations.orthogonal(nn.Linear(7, 7), orthogonal_map="cayley")
    ),
    "older spectral norm, at random": lambda: nn.Sequential(_old(spectral_norm, nn.Linear(6, 8))),
    "pruned": HAND_MADE["pruned"],
    "pruned directions": _pruned_directions,
    "bfloat16": lambda: _spectral().bfloat16(),
}
COMPUTED = {**NORMED, **CONSTRAINED}
HOST = Host.installed()
UNKNOWN = ("orthogonal", "Cayley", "custom over weight norm")  # a file does not say what they are


def build(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return COMPUTED[name]().eval()


def assert_close(module: nn.Module, graph: WeightGraph) -> None:
    """Assert that an evaluation of the module uses the graph's tensors, but for rounding."""
    used = from_module(module).tensors
    for param, tensor in graph.items():
        torch.testing.assert_close(used[param.key], tensor)


@pytest.mark.parametrize("name", COMPUTED)
def test_the_network_of_another_instance_is_loaded(name: str, tmp_path) -> None:
    """Exactly: what it is computed from comes along, masks and vectors too."""
    module, other = build(name), build(name, 1)
    load_into(other, from_module(module))
    for param, tensor in from_module(module).items():
        assert torch.equal(from_module(other).tensors[param.key], tensor)
    torch.save(module.state_dict(), tmp_path / "net.pt")
    if name not in UNKNOWN:
        other, graph = build(name, 2), HOST.open(tmp_path / "net.pt")
        load_into(other, graph)
        assert_close(other, graph)


@pytest.mark.parametrize("name", [*NORMED, "spectral norm", "older spectral norm", "orthogonal"])
def test_values_of_a_plain_network_are_loaded_where_they_fit(name: str) -> None:
    plain = replace(from_module(build(name)), stored_form=None)
    other = build(name, 1)
    load_into(other, plain)
    assert_close(other, plain)


@pytest.mark.parametrize("name", COMPUTED)
def test_what_a_module_has_changes_nothing(name: str) -> None:
    module = build(name)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    load_into(module, from_module(module))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("name", NORMED)
def test_any_values_are_loaded(name: str) -> None:
    module, graph = build(name), from_module(build(name, 1))
    changed = graph.replace({p.key: 3 * x + 0.1 for p, x in graph.items() if len(p.shape) > 1})
    load_into(module, changed)
    assert_close(module, changed)


@pytest.mark.parametrize("factor", [0.3, 3.0])
@pytest.mark.parametrize("name", CONSTRAINED)
def test_values_that_a_module_cannot_have_are_refused(name: str, factor: float) -> None:
    module = build(name)
    graph = from_module(module)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    changed = {
        p.key: factor * x + 0.1 if "pruned" in name or len(p.shape) < 2 else factor * x
        for p, x in graph.items()
    }
    with pytest.raises(SourceError, match=r"must be zero, a spectral norm 1"):
        load_into(module, graph.replace(changed))
    after = module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    load_nearest(module, graph.replace(changed))
    assert all(value.isfinite().all() for value in from_module(module).tensors.values())


def test_it_holds_in_training_too() -> None:
    """A power iteration leaves vectors that fit."""
    module = build("spectral norm").train()
    graph = replace(from_module(build("spectral norm", 1)), stored_form=None)
    load_into(module, graph)
    module(torch.randn(3, 6))
    torch.testing.assert_close(module[0].weight, graph.tensors["0.weight"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["weight norm", "older weight norm"])
def test_a_row_of_zeros_is_no_division_by_zero(name: str) -> None:
    module = build(name)
    graph = from_module(module)
    weight = graph.tensors["0.weight"].clone()
    weight[1] = 0
    load_into(module, graph.replace({"0.weight": weight}))
    torch.testing.assert_close(from_module(module).tensors["0.weight"], weight)


def test_nothing_is_shared_with_what_was_loaded() -> None:
    one, other = build("weight norm"), build("weight norm", 1)
    load_into(other, from_module(one))
    with torch.no_grad():
        other[0].parametrizations.weight.original1.zero_()
    assert one[0].parametrizations.weight.original1.any()


def test_narrower_numbers_are_rounded_and_too_large_ones_refused() -> None:
    module, graph = nn.Linear(3, 2).half(), from_module(nn.Linear(3, 2))
    load_into(module, graph)
    assert torch.equal(module.weight, graph.tensors["weight"].half())
    before = module.weight.clone()
    with pytest.raises(SourceError, match="beyond float16"):
        load_into(module, graph.replace({"weight": torch.full((2, 3), 1e6)}))
    assert torch.equal(module.weight, before)


def _overlapping(weight: torch.Tensor) -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(3, 2, bias=False))
    network[0].weight = nn.Parameter(weight)
    network[1].weight = nn.Parameter(network[0].weight.detach()[:2])
    return network


@pytest.mark.parametrize(
    ("weight", "said"),
    [(torch.ones(4, 3), "memory of another"), (torch.ones(1, 3).expand(4, 3), "one number")],
)
def test_tensors_that_overlap_in_memory(weight: torch.Tensor, said: str) -> None:
    network = _overlapping(weight)
    state = {"0.weight": torch.ones(4, 3), "1.weight": torch.zeros(2, 3)}
    with pytest.raises(SourceError, match=said):
        load_into(network, from_state_dict(state, "state"))
    assert network[0].weight.all()


def test_stored_integers_are_no_weights() -> None:
    state = {"weight": torch.ones(2, 3, dtype=torch.int8), "bias": torch.ones(2)}
    with pytest.raises(SourceError, match="int8 values, which are no weights"):
        load_into(nn.Linear(3, 2), from_state_dict(state, "state"))


# Files


def read(path: Path) -> dict[str, torch.Tensor]:
    """Read a file as its form's own library does."""
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    if path.suffix == ".npz":
        return {key: torch.from_numpy(x) for key, x in np.load(path).items()}
    if path.suffix == ".json":
        shards = path.parent.glob("*.safetensors")
        return {key: x for shard in shards for key, x in load_file(shard).items()}
    return load_file(path)


SUFFIXES = (".safetensors", ".pt", ".npz", ".safetensors.index.json")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", COMPUTED)
def test_a_file_loads_strictly_and_computes_the_same(name: str, suffix: str, tmp_path) -> None:
    if suffix == ".npz" and name == "bfloat16":
        pytest.skip("NumPy has no bfloat16")
    module = build(name)
    graph = from_module(module)
    path = HOST.save(graph, tmp_path / f"net{suffix}")
    other = build(name, 1)
    other.load_state_dict(read(path))
    for param, tensor in from_module(other).items():
        assert torch.equal(tensor, graph.tensors[param.key])
    again = HOST.open(path)
    if name not in UNKNOWN:
        assert again.ties == ({} if suffix == ".npz" else graph.ties)
        for param, tensor in graph.items():
            assert torch.equal(again.tensors[param.key], tensor)
    folder = tmp_path / "again"
    folder.mkdir()
    other = build(name, 2)
    other.load_state_dict(read(HOST.save(again, folder / f"net{suffix}")))
    for param, tensor in from_module(other).items():
        assert torch.equal(tensor, graph.tensors[param.key])


@pytest.mark.parametrize(
    "wrapped",
    [
        nn.DataParallel,
        partial(torch.compile, backend="eager"),
        lambda x: torch.compile(nn.DataParallel(x), backend="eager"),
    ],
)
def test_wrapped_modules_keep_their_names(wrapped, tmp_path) -> None:
    module, other = wrapped(build("tied weight norms")), wrapped(build("tied weight norms", 1))
    graph = from_module(module)
    path = HOST.save(graph, tmp_path / "net.safetensors")
    other.load_state_dict(load_file(path))
    x = torch.randn(3, 5)
    assert torch.equal(other.eval()(x), module.eval()(x))


@pytest.mark.parametrize("name", NORMED)
def test_exchanged_values_come_back_in_the_own_form(name: str, tmp_path) -> None:
    if name in UNKNOWN:
        pytest.skip("its form is not known to a file")
    module = build(name)
    torch.save(module.state_dict(), tmp_path / "net.pt")
    graph = HOST.open(tmp_path / "net.pt")
    changed = graph.replace({p.key: 3 * x + 0.1 for p, x in graph.items()})
    path = HOST.save(changed, tmp_path / "changed.safetensors")
    module.load_state_dict(load_file(path))
    assert_close(module, changed)


def test_a_file_cannot_hold_what_its_form_cannot(tmp_path) -> None:

    torch.save(build("spectral norm").state_dict(), tmp_path / "net.pt")
    graph = HOST.open(tmp_path / "net.pt")
    changed = graph.replace({"0.weight": 2 * graph.tensors["0.weight"]})
    with pytest.raises(SourceError, match="do not fit the form"):
        HOST.save(changed, tmp_path / "changed.pt")
    assert not (tmp_path / "changed.pt").exists()


def test_what_a_file_does_not_say_is_missed() -> None:
    graph = from_state_dict(build("orthogonal").state_dict(), "state")
    assert graph.missed == {"0.parametrizations.weight.original": 63}
    assert "does not say what it computes" in graph.untouched["0.parametrizations.weight.0.base"]


@pytest.mark.parametrize(
    "state",
    [
        {"q_g": torch.ones(4), "q_v": torch.ones(4)},
        {"q_g": torch.ones(4, 2), "q_v": torch.ones(4, 3)},
        {"x_orig": torch.ones(4, 3), "x_u": torch.ones(3), "x_v": torch.ones(3)},
        {"x_g": torch.ones(4, 1), "x_v": torch.ones(4, 3), "x": torch.ones(2)},
    ],
)
def test_names_alone_are_no_norm(state: dict[str, torch.Tensor]) -> None:
    assert {param.key for param in from_state_dict(state, "state").params} == state.keys()
