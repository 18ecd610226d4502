"""A network that NNCF has pruned is read as what it computes: from modules and from their state dicts."""

import pytest
import torch
from torch import nn

from sane_plugins.errors import SourceError
from sane_plugins.formats import from_state_dict
from sane_plugins.weights import from_module, load_into


class _Mask(nn.Module):
    def __init__(self, mask: torch.Tensor, is_learned: bool) -> None:
        super().__init__()
        if is_learned:
            self.mask = nn.Parameter(mask)
        else:
            self.register_buffer("binary_mask", mask)


def _wrapped(is_learned: bool) -> tuple[nn.Module, torch.Tensor]:
    """Return a module with hooks as NNCF keeps them, and which weights of its first layer stay."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    stays = torch.rand(module[0].weight.shape) < 0.4
    mask = torch.where(stays, 0.3, -0.2) if is_learned else stays
    hooks = nn.Module()
    hooks.post_hooks = nn.ModuleDict({"0:weight__0": nn.ModuleDict({"0": _Mask(mask, is_learned)})})
    hooks.pre_hooks = nn.ModuleDict()
    module.add_module("__nncf_hooks", hooks)
    module.forward = lambda x: module[3](module[2](module[1](module[0](x))))
    return module, stays


@pytest.mark.parametrize("is_learned", [False, True])
def test_masks_are_applied_and_are_no_weights(is_learned) -> None:
    module, stays = _wrapped(is_learned)
    plain = nn.Sequential(*list(module.children())[:4])
    for graph in (from_module(module), from_state_dict(module.state_dict(), "a file")):
        assert torch.equal(graph.tensors["0.weight"], plain[0].weight.detach() * stays)
        assert torch.equal(graph.tensors["3.weight"], plain[3].weight.detach())
        assert [p.key for p in graph.params] == [key for key, _ in plain.named_parameters()]
        (told,) = (why for key, why in graph.untouched.items() if "nncf" in key)
        assert "pruned" in told
        assert not graph.missed


def test_a_pruned_entry_takes_nothing_but_zero() -> None:
    module, _ = _wrapped(False)
    graph = from_module(module)
    load_into(module, graph)
    full = graph.replace({"0.weight": torch.ones_like(graph.tensors["0.weight"])})
    with pytest.raises(SourceError, match="pruned entries must be zero"):
        load_into(module, full)


def test_a_mask_of_another_shape_is_told() -> None:
    module, _ = _wrapped(False)
    state = module.state_dict()
    key = next(key for key in state if "nncf" in key)
    state[key] = state[key][:2]
    graph = from_state_dict(state, "a file")
    assert key in graph.untouched
