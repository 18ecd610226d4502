"""`initialize_` writes into a module what does better than its own weights, and touches nothing else."""

import warnings

import pytest
import torch
from graftnets import ResidualNet
from torch import nn

import sane_plugins
from sane_plugins.errors import SaneError, TaskError
from sane_plugins.initialize import Family, InitializeOptions
from sane_plugins.weights import copy_module

NOISE = 6.0
QUICK = InitializeOptions(scored=False, rung=6, norm_batches=4)


@pytest.fixture(scope="module")
def host() -> sane_plugins.Host:
    return sane_plugins.Host.installed()


def _images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images of class centers in noise, with labels."""
    rng = torch.Generator().manual_seed(seed)
    centers = nn.functional.interpolate(
        torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(9)), size=(16, 16)
    )
    labels = torch.randint(5, (count,), generator=rng)
    return centers[labels] + NOISE * torch.randn(count, 3, 16, 16, generator=rng), labels


def _accuracy(module: nn.Module) -> float:
    images, labels = _images(500, 5)
    with torch.no_grad():
        return float((copy_module(module).eval()(images).argmax(1) == labels).double().mean())


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    """Return a network that was trained on such images."""
    torch.manual_seed(0)
    module = ResidualNet((8, 24, 24))
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    images, labels = _images(1500, 1)
    for _ in range(3):
        for x, y in zip(images.split(50), labels.split(50), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x), y).backward()
            optimizer.step()
    return module.eval()


@pytest.fixture(scope="module")
def pruned(dense) -> nn.Module:
    """Return the same network without two thirds of its inner channels: those of `up`."""
    small = ResidualNet((8, 8, 24))
    kept = torch.arange(0, 24, 3)
    state = {key: value.clone() for key, value in dense.state_dict().items()}
    for key in [key for key in state if key.startswith("up.") and state[key].ndim]:
        state[key] = state[key][kept]
    state["down.0.weight"] = state["down.0.weight"][:, kept]
    small.load_state_dict(state)
    return small.eval()


@pytest.fixture(scope="module")
def file(dense, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("dense") / "dense.pt"
    torch.save(dense.state_dict(), path)
    return str(path)


@pytest.mark.parametrize("is_file", [True, False])
def test_what_was_pruned_is_fitted_to_its_dense_network(is_file, dense, pruned, file, host) -> None:
    module = copy_module(pruned).train()
    parameters, modes = [*module.parameters()], [part.training for part in module.modules()]
    random = torch.get_rng_state()
    prompt = file if is_file else dense
    result = sane_plugins.initialize_(module, _images(200, 2), [prompt], QUICK, host)
    assert result.chosen is Family.TRANSFER
    assert "reconstruction" in next(row.name for row in result.rows if row.chosen)
    assert _accuracy(module) > _accuracy(pruned) + 0.03
    assert torch.equal(random, torch.get_rng_state())
    assert all(one is other for one, other in zip(parameters, module.parameters(), strict=True))
    assert modes == [part.training for part in module.modules()]
    assert any("target's own code" in note for note in result.notes) == is_file


def test_images_alone_are_labelled_by_the_dense_network(pruned, file, host) -> None:
    module = copy_module(pruned)
    sane_plugins.initialize_(module, _images(200, 2)[0], [file], QUICK, host)
    assert _accuracy(module) > _accuracy(pruned)


def test_weights_that_nothing_betters_stay(dense, host) -> None:
    """An untrained network as prompt has nothing to give to a trained one."""
    torch.manual_seed(1)
    module, prompt = copy_module(dense), ResidualNet((8, 24, 30))
    result = sane_plugins.initialize_(module, _images(200, 2), [prompt], QUICK, host)
    assert result.chosen is Family.DEFAULT
    assert _accuracy(module) >= _accuracy(dense) - 0.02


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (torch.zeros(4, 3, 16), "images"),
        (torch.zeros(4, 3, 16, 16), "without labels"),
        ((torch.zeros(4, 3, 16, 16), torch.tensor([0, 1, 2])), "for 4 images"),
        ((torch.zeros(4, 3, 16, 16), torch.tensor([0, 1, 2, 5])), "from 0 to 5"),
        ("photos/", "Tensor is needed"),
    ],
)
def test_what_does_not_fit_is_a_sentence_and_changes_nothing(given, told, pruned, host) -> None:
    module = copy_module(pruned)
    with pytest.raises((TaskError, SaneError, TypeError), match=told):
        sane_plugins.initialize_(module, given, [], QUICK, host)
    before = pruned.state_dict()
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_a_training_that_is_watched_is_the_same_training(host) -> None:
    images, labels = _images(100, 3)
    states, watch = [], sane_plugins.PredictWhileTraining(every=2, host=host, force=True)
    logged: list[int] = []
    watch._log = lambda _, step: logged.append(step)
    for is_watched in (False, True):
        torch.manual_seed(0)
        module = nn.Sequential(ResidualNet((6, 8, 12)), nn.Dropout(0.1))
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        for step, (x, y) in enumerate(zip(images.split(25), labels.split(25), strict=True), 1):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x), y).backward()
            if is_watched:
                watch(module, step)
            optimizer.step()
        states.append(module.state_dict())
    assert all(torch.equal(x, states[1][key]) for key, x in states[0].items())
    assert [watched.step for watched in watch.steps] == logged == [2, 4]
    numbers = watch.steps[0].numbers
    assert numbers
    assert all(name.startswith("sane/") for name in numbers)
    assert numbers != watch.steps[1].numbers


def test_a_module_that_cannot_be_predicted_from_ends_no_training(host) -> None:
    watch = sane_plugins.PredictWhileTraining(host=host)
    with pytest.warns(UserWarning, match="not predicted while training"):
        assert watch(nn.ReLU()) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert watch(nn.ReLU()) is None
    assert len(watch.problems) == 2
