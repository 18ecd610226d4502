"""Scores choose channels in Torch-Pruning; what it has pruned starts anew from the dense network's file."""

import pytest
import torch
from graftnets import ResidualNet, trained
from torch import nn

import sane_plugins
from sane_plugins.grafting import find_kept_channels, read_units
from sane_plugins.initialize import InitializeOptions
from sane_plugins.weights import copy_module

tp = pytest.importorskip("torch_pruning", reason="HOST ABSENT: run tox -e hosts")
pytestmark = pytest.mark.filterwarnings("ignore")  # its own

IMAGES = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
QUICK = InitializeOptions(scored=False, rung=6, norm_batches=4)


def _network() -> nn.Module:
    """Return a network of which two of the channels of `up` are read by nothing."""
    module = trained(ResidualNet((6, 12, 12)))
    with torch.no_grad():
        module.down[0].weight[:, [2, 7]] = 0
    return module


def _pruned(module: nn.Module, importance: object, share: float) -> nn.Module:
    small = copy_module(module).requires_grad_(True)
    layers = [x for x in small.modules() if isinstance(x, nn.Conv2d | nn.Linear)]
    pruner = tp.pruner.BasePruner(
        small,
        IMAGES[:1],
        importance=importance(small),
        pruning_ratio=share,
        ignored_layers=[x for x in layers if x is not small.up[0]],
    )
    pruner.step()
    return small.eval()


def _importance(name: str):
    import sane_torch_pruning as ours

    scores = {
        "fisher": lambda x: ours.fisher_scores(x, IMAGES, torch.arange(64) % 5),
        "fisher, own answers": lambda x: ours.fisher_scores(x, IMAGES),
        "border": lambda x: ours.border_scores(x, IMAGES, torch.arange(64) % 5, steps=10),
        "latents": ours.latent_scores,
    }[name]
    return lambda module: ours.channel_importance(scores(module), are_written=name == "latents")


@pytest.mark.parametrize("name", ["fisher", "fisher, own answers", "border", "latents"])
def test_any_pruner_takes_the_scores_and_the_network_stays_as_it_is(name) -> None:
    module = _network().train()
    state = {key: value.clone() for key, value in module.state_dict().items()}
    random = torch.get_rng_state()
    small = _pruned(module, _importance(name), 0.5)
    assert small.up[0].out_channels == 6
    assert small(IMAGES[:2]).shape == (2, 5)
    _importance(name)(module)
    assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert module.training
    assert all(x.grad is None for x in module.parameters())


def test_what_nothing_depends_on_has_no_fisher_information() -> None:
    module = _network()
    small = _pruned(module, _importance("fisher"), 1 / 6)
    kept = find_kept_channels(read_units(module, IMAGES), read_units(small, IMAGES))
    assert kept is not None
    (channels,) = kept.maps.values()
    assert set(range(12)) - set(channels.tolist()) == {2, 7}
    with torch.no_grad():
        assert torch.allclose(module.eval()(IMAGES), small(IMAGES), atol=1e-4)


def test_what_was_pruned_is_started_from_the_dense_file(tmp_path) -> None:
    module = trained(ResidualNet((6, 16, 16)))
    torch.save(module.state_dict(), tmp_path / "dense.pt")
    magnitude = tp.importance.MagnitudeImportance(p=2)
    small = _pruned(module, lambda _: magnitude, 0.5)
    with torch.no_grad():
        wanted = module.eval()(IMAGES)
        before = (small(IMAGES) - wanted).norm()
        result = sane_plugins.initialize_(small, IMAGES, [tmp_path / "dense.pt"], QUICK)
        assert (small.eval()(IMAGES).argmax(1) == wanted.argmax(1)).double().mean() > 0.7
    assert before > 0
    assert any("target's own code" in note for note in result.notes)
