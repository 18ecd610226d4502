"""A transformer learns from a convolutional network's maps: nearer on images not seen, whatever its form."""

from dataclasses import replace

import pytest
import torch
from graftnets import ResidualNet
from tokennets import HandViT, TorchViT
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from sane_plugins.grafting import (
    PromptInfo,
    PromptNetwork,
    RegressionMethod,
    find_classifier,
    fit_classifier,
    prompt_images,
    read_units,
)
from sane_plugins.grafting.fitting import PreparedNetwork, residual_sums
from sane_plugins.grafting.token_maps import token_maps
from sane_plugins.grafting.transformers.map_regression import _Grid
from sane_plugins.tasks import Task, accuracy
from sane_plugins.weights import from_module


@pytest.fixture(scope="module")
def photos() -> Task:
    """Return images of small shapes at any place, which linear functions of pixels do not tell apart."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(700) % 5
    shapes = interpolate(torch.randn(5, 3, 4, 4, generator=rng), size=(8, 8))
    images = 0.3 * torch.randn(700, 3, 32, 32, generator=rng)
    for image, label in zip(images, labels, strict=True):
        row, column = torch.randint(0, 25, (2,), generator=rng).tolist()
        image[:, row : row + 8, column : column + 8] += shapes[label]
    return Task(
        name="shapes",
        x_train=images[:400],
        y_train=labels[:400],
        x_test=images[400:],
        y_test=labels[400:],
        classes=tuple("abcde"),
    )


@pytest.fixture(scope="module")
def prompt(photos: Task) -> PromptNetwork:
    torch.manual_seed(0)
    source = ResidualNet((12, 16, 24))
    optimizer = torch.optim.Adam(source.parameters(), 1e-2)
    for _ in range(25):
        for batch in torch.randperm(400).split(100):
            optimizer.zero_grad()
            loss = cross_entropy(source.train()(photos.x_train[batch]), photos.y_train[batch])
            loss.backward()
            optimizer.step()
    source.eval().requires_grad_(requires_grad=False)
    assert accuracy(source, photos.x_test, photos.y_test) > 0.8
    return PromptNetwork(
        graph=from_module(source), info=PromptInfo(name="source"), build=lambda: source
    )


def _accuracy(module: nn.Module, task: Task) -> float:
    layer = find_classifier(module, task.x_train[:2])
    fit_classifier(module, layer, task.x_train, task.y_train)
    return accuracy(module, task.x_test, task.y_test)


@pytest.mark.parametrize(
    "build", [TorchViT, HandViT, lambda: HandViT(post=True)], ids=["class token", "mean", "post"]
)
def test_features_are_better_than_the_defaults_on_images_not_seen(build, photos, prompt) -> None:
    torch.manual_seed(0)
    fitted, default = build(), build()
    found = RegressionMethod(protect=4.0)(fitted, prompt, photos, torch.Generator().manual_seed(0))
    assert set(found.origins.values()) == {"fitted"}
    assert "prompt's maps" in found.notes[0]
    assert _accuracy(fitted, photos) > _accuracy(default, photos) + 0.1


def test_labels_are_not_read_and_each_time_it_is_the_same(photos, prompt) -> None:
    states = []
    for task in (photos, replace(photos, y_train=photos.y_train.flip(0))):
        torch.manual_seed(0)
        module = TorchViT()
        RegressionMethod(images=64)(module, prompt, task, torch.Generator().manual_seed(0))
        states.append(module.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_maps_lie_over_the_cells_of_a_grid(photos, prompt) -> None:
    module = prompt.build()
    images = prompt_images(prompt, module, photos, 6)
    units = read_units(module, images)
    source = PreparedNetwork(
        module=module, images=images, norms={}, sums=residual_sums(module, images[:2])
    )
    fine, *_ = token_maps(source, units, (4, 4), 12 * 16)
    coarse, *_ = token_maps(source, units, (4, 4), 12)
    assert fine.shape == (6, 16, 12 * 16)
    assert coarse.shape == (6, 16, 12)
    parts = fine.view(6, 16, 16, 12)
    torch.testing.assert_close(parts.mean(2), coarse, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("direction", [(0, 1), (-1, 0), (1, -1)])
def test_a_turned_code_is_nearest_to_its_neighbors(direction: tuple[int, int]) -> None:
    grid = _Grid(size=(5, 6), rates=torch.tensor([0.3, 0.8, 1.6]))
    codes = grid.codes()
    scores = (codes @ grid.turn(direction).T) @ codes.T
    for row, column in ((1, 1), (2, 3), (3, 4)):
        best = int(scores[row * 6 + column].argmax())
        assert (best // 6, best % 6) == (row + direction[0], column + direction[1])
