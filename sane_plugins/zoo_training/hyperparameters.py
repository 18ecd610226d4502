"""Random hyper-parameters and initial weights of a zoo's networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from sane_plugins.architectures import NO_TRUST, Trust, build
from sane_plugins.runtime import drawing_from

T = TypeVar("T")
_SMALL_STD = 0.1


@dataclass(frozen=True, kw_only=True)
class HyperparameterRanges:
    """Values that hyper-parameters are drawn from; the defaults are those of the published zoos.

    Learning rates are log-uniform between two powers of ten; a value that is listed twice is drawn twice as
    often.
    """

    act: tuple[str, ...] = ("relu", "tanh", "gelu", "sigmoid")
    init: tuple[str, ...] = (
        "default",
        "normal_small",
        "kaiming_uniform_",
        "kaiming_normal_",
        "xavier_uniform_",
    )
    opt: tuple[str, ...] = ("sgd", "adam")
    sgd_lr: tuple[float, float] = (-2.5, -1.0)
    adam_lr: tuple[float, float] = (-3.5, -2.0)
    wd: tuple[float, ...] = (0.0, 1e-4, 1e-3)
    p: tuple[float, ...] = (0.0, 0.0, 0.2)


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Hyper-parameters of one network: learning rate `lr`, weight decay `wd`, dropout `p`, and others."""

    act: str
    init: str
    opt: str
    lr: float
    wd: float
    p: float
    seed: int

    def properties(self) -> dict[str, Any]:
        """Return the hyper-parameters by name."""
        return asdict(self)


def draw_hyperparameters(
    count: int, ranges: HyperparameterRanges, seed: int
) -> list[Hyperparameters]:
    """Draw hyper-parameters of `count` networks; a larger count extends the same list."""
    rng = torch.Generator().manual_seed(seed)
    return [_draw(ranges, rng, seed * 100_000 + i) for i in range(count)]


def build_initialized(
    draw: Hyperparameters, factory: Mapping[str, Any], trust: Trust = NO_TRUST
) -> nn.Module:
    """Build a network with initial weights that depend only on its own hyper-parameters."""
    with drawing_from(torch.Generator().manual_seed(draw.seed)):
        network = build(factory, trust)
        if draw.init != "default":
            _initialize(network, INITIALIZATIONS[draw.init])
    return network


def _init_normal_small(weight: torch.Tensor) -> None:
    nn.init.normal_(weight, std=_SMALL_STD)


INITIALIZATIONS: Mapping[str, Callable[[torch.Tensor], object]] = {
    "normal_small": _init_normal_small,
    "uniform_small": lambda weight: nn.init.uniform_(weight, -_SMALL_STD, _SMALL_STD),
    "kaiming_uniform_": nn.init.kaiming_uniform_,
    "kaiming_normal_": nn.init.kaiming_normal_,
    "xavier_uniform_": nn.init.xavier_uniform_,
}


def _initialize(network: nn.Module, fill: Callable[[torch.Tensor], object]) -> None:
    """Initialise weights of convolutional and linear layers, and zero their biases."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fill(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _draw(ranges: HyperparameterRanges, rng: torch.Generator, seed: int) -> Hyperparameters:
    opt = _choose(ranges.opt, rng)
    low, high = ranges.sgd_lr if opt == "sgd" else ranges.adam_lr
    exponent = low + (high - low) * float(torch.rand((), generator=rng, dtype=torch.float64))
    return Hyperparameters(
        act=_choose(ranges.act, rng),
        init=_choose(ranges.init, rng),
        opt=opt,
        lr=10**exponent,
        wd=_choose(ranges.wd, rng),
        p=_choose(ranges.p, rng),
        seed=seed,
    )


def _choose(values: Sequence[T], rng: torch.Generator) -> T:
    return values[int(torch.randint(len(values), (), generator=rng))]
