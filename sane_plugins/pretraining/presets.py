"""Options of pretraining, and two presets: the best measured one and the published one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

from sane_plugins.arguments import require_field_types, require_ranges
from sane_plugins.autoencoder import SANEConfig
from sane_plugins.zoo import Zoo

_RANGES = {"side": (0.0, 1e6), "hidden": (0.0, 1e6), "hidden_share": (0.0, 0.5)}


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """Options of pretraining with AdamW and a one-cycle learning-rate schedule.

    A step accumulates gradients of `accumulate` batches of `batch` windows; `balance` says what is sampled
    uniformly: tokens, networks, the architectures of each zoo ("zoos"), or those of all together. `gamma` and
    `temperature` are the weight and temperature of the contrastive loss, `side` is the weight of the error in
    tensors' scales relative to that in values, `behaviour` the weight of the behaviour loss. `hidden` is the
    weight of decoding tokens that the encoder was not shown, a mean share `hidden_share` of those of half of
    the windows. `noise` is multiplicative; each network, first `aligned`, or with channels in `canonical`
    order instead, has `views` permuted views. `loss` is the squared error of values as encoded, or uses
    "masked" loss normalisation. `save_every` and `log_every` count steps and do not affect results; 0 saves
    after every step, limited to a tenth of the time.
    """

    steps: int = 12_000
    batch: int = 8
    accumulate: int = 1
    lr: float = 1e-3
    weight_decay: float = 3e-9
    gamma: float = 0.05
    temperature: float = 0.1
    noise: float = 0.1
    side: float = 0.1
    behaviour: float = 0.0
    hidden: float = 0.0
    hidden_share: float = 0.3
    views: int = 7
    aligned: bool = True
    canonical: bool = False
    loss: Literal["standardised", "masked"] = "standardised"
    balance: Literal["tokens", "networks", "zoos", "architectures"] = "zoos"
    seed: int = 0
    bf16: bool = True
    compiled: bool = False
    save_every: int = 0
    log_every: int = 10
    device: str = "cpu"

    def __post_init__(self) -> None:
        require_field_types(self)
        require_ranges(self, _RANGES)


Preset = tuple[SANEConfig, PretrainOptions]


def default_preset(_: Sequence[Zoo]) -> Preset:
    """Return the settings that performed best in our measurements."""
    return SANEConfig(), PretrainOptions()


def paper_preset(zoos: Sequence[Zoo]) -> Preset:
    """Return the published settings for zoos of one small CNN (docs/explanation/sane.md, section 4.7).

    An epoch draws as many windows as there are checkpoints. At inference a whole sequence is one window.
    """
    config = SANEConfig(
        token_width=289,
        latent_width=128,
        model_width=1024,
        heads=8,
        layers=8,
        window=100,
        halo=0,
        projection_width=30,
        scale="zoo",
        tables=(100, 10, 40),
        projection="window",
        is_normed=False,
        span=64,
    )
    batch = 32
    steps = 50 * ceil(sum(map(len, zoos)) / batch)
    options = PretrainOptions(
        steps=steps,
        batch=batch,
        lr=1e-4,
        weight_decay=3e-9,
        gamma=0.05,
        temperature=0.1,
        noise=0.1,
        behaviour=0.0,
        views=5,
        aligned=True,
        loss="standardised",
        balance="networks",
    )
    return config, options


PRESETS: Mapping[str, Callable[[Sequence[Zoo]], Preset]] = {
    "default": default_preset,
    "paper": paper_preset,
}
