"""Ridge regression of classes: what is said of images left out is what leaving them out says."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from sane_plugins.grafting import (
    condition,
    find_classifier,
    fit_classifier,
    fit_ridge,
    lead,
    softness_of,
)
from sane_plugins.tasks import accuracy, load_task

N, CLASSES = 40, 3


def _images(width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (N,), generator=rng)
    centers = torch.randn(CLASSES, width, generator=rng)
    noise = torch.randn(N, width, generator=rng)
    return centers[labels] + 2 * noise + 5, labels


def _solve(x: torch.Tensor, y: torch.Tensor, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ridge regression's weight and bias by its normal equations."""
    centered, identity = x - x.mean(0), torch.eye(x.shape[1], dtype=x.dtype)
    gram = centered.T @ centered + penalty * identity
    weight = torch.linalg.solve(gram, centered.T @ (y - y.mean(0)))
    return weight, y.mean(0) - x.mean(0) @ weight


@pytest.mark.parametrize("width", [5, N, 3 * N])
def test_the_fit_and_its_leave_one_out_losses_are_those_of_fits_without_the_image(width) -> None:
    features, labels = _images(width)
    fit = fit_ridge(features, labels, CLASSES)
    x, y = features.double(), one_hot(labels, CLASSES).double()
    penalty = fit.penalty * float((x - x.mean(0)).square().sum()) / width + 1e-9 * N
    weight, bias = _solve(x, y, penalty)
    torch.testing.assert_close(fit.weight, fit.factor * weight.T)
    torch.testing.assert_close(fit.bias, fit.factor * bias)

    left_out = torch.empty(N, CLASSES, dtype=torch.float64)
    for i in range(N):
        others = torch.arange(N) != i
        weight, bias = _solve(x[others], y[others], penalty)
        left_out[i] = x[i] @ weight + bias
    losses = cross_entropy(fit.factor * left_out, labels, reduction="none")
    torch.testing.assert_close(fit.loo_loss_per_image, losses)
    assert fit.loo_accuracy == pytest.approx(float((left_out.argmax(1) == labels).double().mean()))
    assert fit.loo_loss == pytest.approx(float(losses.mean()))


def test_features_that_say_nothing_are_no_better_than_the_shares_of_the_classes() -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    fit = fit_ridge(torch.randn(200, 100, generator=rng), labels, 2)
    assert fit.loo_loss > 0.6
    assert fit.loo_accuracy < 0.65


def test_better_features_lead_beyond_the_error_and_equal_ones_do_not() -> None:
    good, labels = _images(20)
    poor = torch.randn(N, 20, generator=torch.Generator().manual_seed(1))
    broken = torch.full((N, 20), float("nan"))
    fits = [fit_ridge(x, labels, CLASSES) for x in (good, poor, broken)]
    gain = fits[1].loo_loss_per_image - fits[0].loo_loss_per_image
    assert lead(fits[0], fits[1]) == pytest.approx(float(gain.mean() / gain.std()) * N**0.5)
    assert lead(fits[0], fits[1]) > 2
    assert lead(fits[1], fits[0]) == -lead(fits[0], fits[1])
    assert lead(fits[1], fits[2]) == float("inf")
    assert lead(fits[2], fits[1]) == -float("inf")
    assert lead(fits[0], fits[0]) == lead(fits[2], fits[2]) == 0.0


def test_features_that_overflow_teach_nothing() -> None:
    features, labels = _images(4)
    features[3, 1] = float("inf")
    fit = fit_ridge(features, labels, CLASSES)
    assert fit.loo_loss == float("inf")
    assert not fit.weight.any()
    assert not fit.bias.any()


@pytest.mark.parametrize("width", [1, 7])
def test_constant_features_and_absent_classes_are_fitted(width) -> None:
    labels = torch.tensor([0, 0, 2, 0])
    fit = fit_ridge(torch.full((4, width), 3.0), labels, CLASSES)
    assert not fit.weight.any()
    assert fit.bias.argmax() == 0


def test_fitting_a_classifier_returns_what_it_says_of_images_left_out() -> None:
    task = load_task("digits")
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.9),
        nn.Linear(576, 10),
    )
    condition(module, task.x_train, 4, 64, torch.Generator().manual_seed(0))
    layer = find_classifier(module, task.x_train[:2])
    fit = fit_classifier(module, layer, task.x_train, task.y_train)
    torch.testing.assert_close(layer.weight, fit.weight.float())
    assert accuracy(module, task.x_test, task.y_test) == pytest.approx(fit.loo_accuracy, abs=0.03)


@pytest.mark.parametrize(
    "norm", [None, nn.BatchNorm2d, nn.InstanceNorm2d, lambda n: nn.GroupNorm(2, n)]
)
def test_transferred_networks_without_norms_begin_with_small_outputs(norm) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), *([] if norm is None else [norm(8)]), nn.ReLU()]
    module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    images, labels = torch.randn(64, 1, 8, 8), torch.arange(64) % 4
    fit_classifier(module, module[-1], images, labels)
    before = module(images)
    softness = softness_of(module)
    assert softness > 1 if norm is None else softness == 1
    fit_classifier(module, module[-1], images, labels, softness)
    assert torch.allclose(module(images) * softness, before, atol=1e-4)


def test_weights_that_would_be_huge_are_written_smaller_and_answer_alike() -> None:
    """Deep networks without norms lose the signal; a classifier that brings it back diverges in training."""
    torch.manual_seed(0)
    images = torch.randn(200, 20)
    labels = images[:, :3].argmax(1)
    module = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 3))
    with torch.no_grad():
        module[0].weight.mul_(1e-6)
        module[0].bias.zero_()
    fit = fit_classifier(module, module[1], images, labels)
    deviation = module[1].weight.detach().square().mean().sqrt() * (3 * 20) ** 0.5
    assert deviation == pytest.approx(400, rel=1e-3)
    features = module[0](images).detach().double()
    assert torch.equal(module(images).argmax(1), (features @ fit.weight.T + fit.bias).argmax(1))
