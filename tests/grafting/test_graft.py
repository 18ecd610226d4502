"""Grafts keep functions where they can: into the own architecture, wider, from a permuted copy."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from graftnets import FAMILIES, MobileNet, Opaque, PlainNet, ResidualNet, trained
from torch import nn

from sane_plugins.grafting import graft, match, match_places, read_units
from sane_plugins.symmetry import permutation_groups, permute, random_permutations
from sane_plugins.weights import from_module, load_into, load_nearest

IMAGES = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(3))
Build = Callable[..., nn.Module]


def grafted(source: nn.Module, target: nn.Module, noise: float = 0.0, matcher=match) -> nn.Module:
    """Return the target in evaluation mode with a graft of the source."""
    ours, theirs = read_units(source, IMAGES), read_units(target, IMAGES)
    weights = graft(ours, theirs, matcher(ours, theirs), torch.Generator().manual_seed(0), noise)
    load_nearest(target, theirs.graph.replace({**weights.lent, **weights.adjusted}))
    return target.eval()


@torch.no_grad()
def outputs(module: nn.Module) -> torch.Tensor:
    return module.eval()(IMAGES)


@pytest.mark.parametrize("build", [*FAMILIES.values(), Opaque], ids=[*FAMILIES, "opaque"])
@pytest.mark.parametrize("matcher", [match, match_places])
def test_a_network_in_its_own_architecture_is_itself(build: Build, matcher) -> None:
    source, target = trained(build()), trained(build(), 1)
    assert not torch.equal(outputs(source), outputs(target))
    found = outputs(grafted(source, target, 0.02, matcher))
    if build is FAMILIES["gain"]:  # a computed weight comes as near as its parametrisation can
        torch.testing.assert_close(found, outputs(source))
    else:
        assert torch.equal(found, outputs(source))


@pytest.mark.parametrize("build", FAMILIES.values(), ids=FAMILIES)
def test_a_network_is_as_similar_to_itself_as_can_be(build: Build) -> None:
    units = read_units(build(), IMAGES)
    matching = match(units, units)
    assert matching.similarity == pytest.approx(1)
    assert {name: pair.sources for name, pair in matching.pairs.items()} == {
        unit.name: (unit,) for unit in units.units
    }


@pytest.mark.parametrize("build", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 2, 1), (2, 3, 1)])
def test_a_wider_network_computes_the_same(build: Build, factors: tuple[int, int, int]) -> None:
    widths = {"plain": (6, 10, 12), "mobile": (6, 12, 20), "mlp": (16, 12, 10)}.get(
        next(name for name, x in FAMILIES.items() if x is build), (6, 8, 12)
    )
    wider = tuple(width * factor for width, factor in zip(widths, factors, strict=True))
    source = trained(build(widths))
    torch.testing.assert_close(
        outputs(grafted(source, build(wider))), outputs(source), rtol=1e-3, atol=1e-4
    )


def test_a_width_that_is_no_multiple_computes_the_same() -> None:
    source = trained(ResidualNet((6, 8, 12)))
    torch.testing.assert_close(
        outputs(grafted(source, ResidualNet((7, 13, 17)))), outputs(source), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("build", [FAMILIES["residual"], FAMILIES["plain"]])
def test_a_permuted_copy_grafts_the_same_function(build: Build) -> None:
    source, copy = trained(build()), build()
    graph = from_module(source)
    groups = permutation_groups(graph)
    perms = random_permutations(groups, torch.Generator().manual_seed(0))
    load_into(copy, permute(graph, perms))
    torch.testing.assert_close(outputs(copy), outputs(source), rtol=1e-4, atol=1e-5)
    narrow = (4, 6, 8)
    torch.testing.assert_close(
        outputs(grafted(copy, build(narrow))),
        outputs(grafted(source, build(narrow))),
        rtol=1e-3,
        atol=1e-4,
    )


def test_copied_channels_differ_a_little_so_that_training_can_part_them() -> None:
    source = trained(PlainNet((6, 10, 12)))
    target = grafted(source, PlainNet((12, 10, 12)), 0.02)
    filters = target.get_parameter("first.weight").detach()
    distances = torch.cdist(filters.flatten(1), filters.flatten(1)).fill_diagonal_(torch.inf)
    nearest = distances.amin(1) / filters.flatten(1).norm(dim=1)
    assert float(nearest.min()) > 0.005
    assert float(nearest.max()) < 0.1


def test_equal_generators_give_equal_bytes() -> None:
    source = trained(PlainNet())
    one, other = (grafted(source, trained(PlainNet((9, 20, 12)), 1), 0.02) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_gate_without_partner_is_opened() -> None:
    source, target = trained(MobileNet()), MobileNet(has_gate=True)
    with torch.no_grad():
        closed = float((outputs(grafted(source, target)) - outputs(source)).norm())
        blind = MobileNet(has_gate=True)
        state = target.state_dict()
        fresh = {k: v for k, v in blind.state_dict().items() if ".gate." in k}
        blind.load_state_dict(state | fresh)
        assert closed < 0.35 * float((outputs(blind) - outputs(source)).norm())


def test_a_norm_is_folded_where_the_target_has_none() -> None:
    def build(*norm: nn.Module) -> nn.Module:
        rest = nn.ReLU(), nn.Conv2d(6, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return nn.Sequential(nn.Conv2d(3, 6, 3), *norm, *rest)

    source = trained(build(nn.BatchNorm2d(6)))
    torch.testing.assert_close(
        outputs(grafted(source, build())), outputs(source), rtol=1e-4, atol=1e-5
    )


def test_statistics_agree_where_norms_add_other_amounts() -> None:
    source = trained(PlainNet())
    target = PlainNet()
    target.norm.eps = 0.05
    torch.testing.assert_close(
        outputs(grafted(source, target)), outputs(source), rtol=1e-4, atol=1e-5
    )


def test_a_separable_network_is_composed_for_a_dense_one() -> None:
    rest = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    chain = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6)
    source = trained(nn.Sequential(*chain, nn.Conv2d(6, 8, 1), *rest))
    target = nn.Sequential(nn.Conv2d(3, 8, 3), *deepcopy(rest))
    matching = match(read_units(source, IMAGES), read_units(target, IMAGES))
    assert [unit.name for unit in matching.pairs["0"].sources] == ["0", "2", "4"]
    torch.testing.assert_close(
        outputs(grafted(source, target)), outputs(source), rtol=1e-3, atol=1e-4
    )


def test_a_convolution_unrolls_into_a_linear_layer_on_the_pixels() -> None:
    places = 8 * 8
    source = trained(
        nn.Sequential(
            nn.Conv2d(3, 6, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 5),
        )
    )
    target = nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 16 * 16, 6 * places), nn.ReLU(), nn.Linear(6 * places, 5)
    )
    torch.testing.assert_close(
        outputs(grafted(source, target)), outputs(source), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("source_name", FAMILIES)
@pytest.mark.parametrize("target_name", FAMILIES)
def test_any_family_grafts_into_any_other(source_name: str, target_name: str) -> None:
    source, target = trained(FAMILIES[source_name]()), FAMILIES[target_name]((9, 14, 11))
    assert bool(outputs(grafted(source, target, 0.02)).isfinite().all())


def test_connections_that_cannot_be_traced_are_told() -> None:
    units = read_units(Opaque(), IMAGES)
    assert not units.is_traced
    assert "place" in units.notes[0]
    assert [unit.name for unit in units.units] == [
        "net.first",
        "net.second",
        "net.hidden",
        "net.last",
    ]
