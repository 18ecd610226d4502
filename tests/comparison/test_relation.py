"""What became of a tensor: each change is told from the others, by values alone."""

import math

import pytest
import torch

from sane_plugins.comparison.relation import relate
from sane_plugins.comparison.value_grid import find_grid

CHANCE = 0.15
FLOAT = torch.finfo(torch.float32).eps


@pytest.fixture
def matrix() -> torch.Tensor:
    """Return trained-like weights (64, 32, 9): heavy tails, channels of different size."""
    rng = torch.Generator().manual_seed(0)
    sizes = torch.rand(64, 1, 1, generator=rng) + 0.2
    return sizes * torch.randn(64, 32, 9, generator=rng) ** 3 * 0.05


def _noise(like: torch.Tensor, seed: int = 1) -> torch.Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def _rounded_to_grid(x: torch.Tensor, bits: int, block: int = 0) -> torch.Tensor:
    rows = x.reshape(-1, block) if block else x.flatten(1)
    step = rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return ((rows / step).round() * step).view_as(x)


def test_the_same_values_are_equal_bit_by_bit_and_any_change_is_not(matrix) -> None:
    assert relate(matrix, matrix.clone(), CHANCE).is_exact
    other = matrix.clone()
    other[3, 4, 5] *= 1.001
    found = relate(matrix, other, CHANCE)
    assert (found.change, found.is_exact) == ("changed", False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_to_a_type_is_told_even_where_it_is_stored_in_a_wider_one(matrix, dtype) -> None:
    for rounded in (matrix.to(dtype), matrix.to(dtype).float()):
        found = relate(matrix, rounded, CHANCE)
        assert (found.change, found.derived) == ("rounded", "b")
        assert found.precision == str(dtype).removeprefix("torch.")
        assert relate(rounded, matrix, CHANCE).derived == "a"


def test_values_of_a_coarse_type_that_moved_are_not_rounded(matrix) -> None:
    coarse = matrix.bfloat16()
    moved = (coarse.float() * (1 + 0.05 * _noise(matrix))).bfloat16()
    assert relate(coarse, moved, CHANCE).change == "changed"


@pytest.mark.parametrize(("bits", "block"), [(8, 0), (4, 0), (8, 32)])
def test_a_grid_is_found_with_its_bits_and_plain_rounding_is_a_third_of_a_step(bits, block) -> None:
    matrix = torch.randn(64, 32, 9, generator=torch.Generator().manual_seed(0))
    found = relate(matrix, _rounded_to_grid(matrix, bits, block), CHANCE)
    assert (found.change, found.derived, found.bits) == ("quantized", "b", bits)
    assert found.unit == (str(block) if block else "channel")
    assert found.error_steps == pytest.approx(1 / math.sqrt(12), rel=0.1)


def test_levels_of_uneven_distance_are_a_grid(matrix) -> None:
    rows = matrix.reshape(-1, 96)[:, :64].reshape(64, 3, 64)
    levels = torch.linspace(-1, 1, 16) ** 3
    size = rows.abs().amax(2, keepdim=True)
    nearest = (rows[..., None] / size[..., None] - levels).abs().argmin(-1)
    grid = find_grid(levels[nearest] * size, FLOAT)
    assert grid is not None
    assert (grid.bits, grid.unit) == (4, "64")
    assert find_grid(rows, FLOAT) is None


def test_weights_that_were_trained_on_and_then_quantised_are_changed(matrix) -> None:
    moved = matrix + 0.3 * matrix.std() * _noise(matrix)
    assert relate(matrix, _rounded_to_grid(moved, 8), CHANCE).change == "changed"


@pytest.mark.parametrize("share", [0.05, 0.9])
def test_zeros_are_pruning_whether_the_rest_moved_or_not(matrix, share) -> None:
    limit = matrix.abs().flatten().kthvalue(int(share * matrix.numel()))[0]
    kept = matrix.abs() > limit
    found = relate(matrix, matrix * kept, CHANCE)
    assert (found.change, found.derived) == ("pruned", "b")
    assert found.pruned == pytest.approx(share, abs=0.01)
    assert found.kept_distance == 0
    moved = relate(matrix, (matrix + 0.02 * matrix.std() * _noise(matrix)) * kept, CHANCE)
    assert moved.change == "pruned"
    assert 0.001 < moved.kept_distance < 0.05


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_change_of_few_directions_is_told_with_its_rank(matrix, rank, dtype) -> None:
    matrix = matrix.to(dtype).float()
    change = torch.randn(64, rank) @ torch.randn(rank, 288)
    merged = matrix + (0.1 * matrix.norm() / change.norm() * change).view_as(matrix)
    found = relate(matrix, merged.to(dtype), CHANCE)
    assert (found.change, found.rank.rank, found.rank.full) == ("low_rank", rank, 64)
    assert found.distance == pytest.approx(0.1, rel=0.01)


def test_a_few_zeros_are_a_change_and_no_pruning(matrix) -> None:
    other = matrix.clone()
    other.view(-1)[::500] = 0
    assert relate(matrix, other, CHANCE).change == "changed"


def test_short_and_constant_vectors_are_known_by_their_distance() -> None:
    ones = torch.ones(16)
    assert relate(ones, ones * 1.01 + 0.001 * _noise(ones), 0.9).change == "changed"
    assert relate(ones, _noise(ones), 0.9).change == "replaced"


def test_noise_moves_all_directions(matrix) -> None:
    found = relate(matrix, matrix + 0.01 * matrix.std() * _noise(matrix), CHANCE)
    assert (found.change, found.rank.rank) == ("changed", 64)
    assert found.distance == pytest.approx(0.01, rel=0.05)
    assert found.cosine == pytest.approx(1 - 0.01**2 / 2, abs=1e-5)


def test_factors_of_channels_are_taken_out_before_anything_else(matrix) -> None:
    factors = torch.rand(64, 1, 1) + 0.1
    found = relate(matrix, matrix * factors, CHANCE)
    assert (found.change, found.scaling, found.is_exact) == ("equal", "outputs", False)
    assert torch.allclose(found.factors.float(), factors.flatten(), rtol=1e-5)
    inputs = torch.rand(32, 1) + 0.1
    assert relate(matrix, matrix * inputs, CHANCE).scaling == "inputs"
    assert relate(matrix, matrix * -3, CHANCE).scaling == "tensor"
    quantized = relate(matrix, _rounded_to_grid(matrix * factors, 8), CHANCE)
    assert (quantized.change, quantized.scaling) == ("quantized", "outputs")


def test_strangers_are_replaced_however_alike_their_kernels_are(matrix) -> None:
    bump = 0.1 * torch.tensor([0.0, 1, 0, 1, 2, 1, 0, 1, 0])
    one, other = matrix + bump, matrix.flip(0, 1) + bump
    found = relate(one, other, CHANCE)
    assert found.cosine > CHANCE
    assert found.change == "replaced"


def test_values_that_are_not_finite_are_counted_and_the_others_compared(matrix) -> None:
    broken = matrix.clone()
    broken[0, 0, :2] = torch.tensor([float("nan"), float("inf")])
    found = relate(matrix, broken, CHANCE)
    assert (found.change, found.nonfinite, found.distance) == ("changed", 2, 0.0)
    assert relate(broken, broken.clone(), CHANCE).change == "equal"


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(4, 3, 1), torch.ones(5), torch.full((2, 2, 1), 1e38), torch.tensor([1e-45, 0.0])],
)
@pytest.mark.parametrize("factor", [1.0, -1.0, 0.0, 1e-30])
def test_degenerate_tensors_have_an_answer(tensor, factor) -> None:
    found = relate(tensor, tensor * factor, CHANCE)
    assert (found.change == "equal") >= torch.equal(tensor, tensor * factor)
    assert found.distance is None or math.isfinite(found.distance)


@pytest.mark.parametrize("seed", range(20))
def test_exchanging_the_networks_exchanges_who_was_made_of_whom(seed) -> None:
    rng = torch.Generator().manual_seed(seed)
    matrix = torch.randn(20, 18, 1, generator=rng)
    changed = [
        matrix.half(),
        _rounded_to_grid(matrix, 8),
        matrix * (matrix.abs() > 0.5),
        matrix + 0.1 * torch.randn(matrix.shape, generator=rng),
    ][seed % 4]
    there, back = relate(matrix, changed, CHANCE), relate(changed, matrix, CHANCE)
    assert there.change == back.change
    assert (there.derived, back.derived) in {("b", "a"), ("", "")}
