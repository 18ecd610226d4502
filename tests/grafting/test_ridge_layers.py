"""The solver of feature regression: exact, the same in both forms, each group on its own."""

import pytest
import torch
from torch import nn

from sane_plugins.grafting.fitting.patches import at_positions, grid_of, read_patches, write_weight
from sane_plugins.grafting.fitting.ridge_layers import fit_around, ridge_steps


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("samples", [30, 7])
def test_both_forms_solve_the_normal_equations(samples: int) -> None:
    x, y = _normal(2, samples, 12), _normal(2, samples, 3, seed=1)
    step = next(ridge_steps(x, y, [0.3]))
    for group in range(2):
        gram = x[group].T @ x[group]
        gram += 0.3 * gram.diagonal().mean() * torch.eye(12)
        torch.testing.assert_close(gram @ step[group], x[group].T @ y[group])


def test_what_the_inputs_determine_is_found_with_little_penalty() -> None:
    x, true = _normal(200, 1, 9), _normal(1, 9, 4, seed=1)
    y = torch.einsum("sgf,gfo->sgo", x, true)
    torch.testing.assert_close(fit_around(x, y, _normal(1, 9, 4, seed=2), [1e-12]), true)


def test_weights_that_fit_up_to_a_factor_stay_up_to_that_factor() -> None:
    x, weight = _normal(50, 2, 5), _normal(2, 5, 3, seed=1)
    y = torch.einsum("sgf,gfo->sgo", x, 2.5 * weight)
    torch.testing.assert_close(fit_around(x, y, weight, [1e6]), 2.5 * weight, rtol=1e-5, atol=1e-5)


def test_groups_are_fitted_each_on_its_own() -> None:
    x, y, weight = _normal(40, 3, 6), _normal(40, 3, 2, seed=1), _normal(3, 6, 2, seed=2)
    together = fit_around(x, y, weight, [0.5])
    for g in range(3):
        alone = fit_around(x[:, g : g + 1], y[:, g : g + 1], weight[g : g + 1], [0.5])
        torch.testing.assert_close(together[g : g + 1], alone)


def test_the_penalty_is_chosen_by_samples_that_are_left_out() -> None:
    x, true = _normal(100, 1, 30), _normal(1, 30, 2, seed=1)
    noise = _normal(100, 1, 2, seed=2)
    exact, zero = torch.einsum("sgf,gfo->sgo", x, true), torch.zeros(1, 30, 2).double()
    for y, best in ((exact, 1e-6), (5 * noise, 100.0)):
        chosen = fit_around(x, y, zero, [1e-6, 1.0, 100.0])
        torch.testing.assert_close(chosen, fit_around(x, y, zero, [best]))


def test_outputs_and_inputs_that_do_not_vary_leave_finite_weights() -> None:
    x, y, weight = _normal(20, 2, 4), _normal(20, 2, 3, seed=1), _normal(2, 4, 3, seed=2)
    x[:, 1], y[:, 0, 2] = 0.0, 0.0
    fitted = fit_around(x.float(), y.float(), weight.float(), [0.5])
    assert fitted.isfinite().all()
    torch.testing.assert_close(fitted[0, :, 2], weight.float()[0, :, 2])


class _PadsItself(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


class _Standardised(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight / self.weight.std(), self.bias)


LAYERS = {
    "dense": nn.Conv2d(6, 4, 3, padding=1),
    "strided": nn.Conv2d(6, 4, 3, stride=2, bias=False),
    "grouped": nn.Conv2d(6, 4, (3, 1), groups=2, padding=(1, 0)),
    "depthwise": nn.Conv2d(6, 12, 3, groups=6, dilation=2),
    "same": nn.Conv2d(6, 4, 5, padding="same"),
    "padding itself": _PadsItself(6, 4, 3, stride=2),
    "pointwise": nn.Conv2d(6, 4, 1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_patches_times_weight_are_the_convolution(name: str) -> None:
    layer, x = LAYERS[name], _normal(3, 6, 9, 8).float()
    output = layer(x)
    rows, columns = grid_of(layer, output)
    positions = torch.randperm(3 * rows * columns, generator=torch.Generator().manual_seed(0))[:20]
    patches = read_patches(layer, x, positions)
    bias = 0 if layer.bias is None else layer.bias
    expected = at_positions(output, positions, is_channels_last=isinstance(layer, nn.Linear))
    torch.testing.assert_close(patches.outputs() + bias, expected, rtol=1e-4, atol=1e-5)
    write_weight(layer, 2 * patches.weight)
    torch.testing.assert_close(
        layer(x) - bias.reshape(-1, 1, 1) if layer.bias is not None else layer(x),
        2 * (output - bias.reshape(-1, 1, 1)) if layer.bias is not None else 2 * output,
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 2, 6)])
def test_linear_layers_read_vectors_and_grids(shape: tuple[int, ...]) -> None:
    layer, x = nn.Linear(6, 3), _normal(*shape).float()
    positions = torch.tensor([0, 2, 4])
    patches = read_patches(layer, x, positions)
    expected = layer(x).reshape(-1, 3)[positions]
    torch.testing.assert_close(patches.outputs() + layer.bias, expected)


@pytest.mark.parametrize(
    "layer",
    [
        _Standardised(6, 4, 3),
        nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 4, 3)),
    ],
)
def test_layers_that_compute_something_else_are_left_alone(layer: nn.Conv2d) -> None:
    assert read_patches(layer, _normal(3, 6, 9, 8).float(), torch.arange(4)) is None
