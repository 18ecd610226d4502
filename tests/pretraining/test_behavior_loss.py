"""The behaviour term compares what networks answer, not how they are written."""

from pathlib import Path

import pytest
import torch

from sane_plugins.architectures import build
from sane_plugins.autoencoder import SANEConfig
from sane_plugins.pretraining import BehaviorLoss, PretrainOptions, behavior_loss, pretrain
from sane_plugins.pretraining.permuted_dataset import build_datasets, token_indices
from sane_plugins.pretraining.view_batch import ViewBatch, draw_windows
from sane_plugins.progress import silent
from sane_plugins.zoo import Entry, Zoo, write_zoo

FACTORIES = {
    "small_cnn": {"name": "small_cnn", "channels_in": 1, "classes": 10},
    "resnet": {"name": "resnet", "depth": 8, "width": 4, "channels_in": 1, "classes": 10},
}
IMAGES = torch.randn(40, 1, 28, 28, generator=torch.Generator().manual_seed(0))
CONFIG = SANEConfig(model_width=24, heads=2, layers=1, latent_width=8, window=24, halo=4)


def _zoo(folder: Path, factory: dict[str, object], acts: tuple[str, ...] = ("relu",)) -> Zoo:
    def items():
        for i, act in enumerate(acts):
            told = {**factory, "act": act} if factory["name"] == "small_cnn" else factory
            torch.manual_seed(i)
            yield (
                Entry(network=str(i), checkpoint="0", factory=told, properties={}),
                build(told).state_dict(),
            )

    return write_zoo(folder, "zoo", items())


def _drawn(zoo: Zoo, span: int = 32) -> tuple[ViewBatch, torch.Generator]:
    rng = torch.Generator().manual_seed(3)
    (dataset,) = build_datasets([zoo], CONFIG, 2, rng, silent)
    return draw_windows(dataset, 6, span, rng), rng


def _both(x: torch.Tensor) -> torch.Tensor:
    return x.repeat(2, 1, 1)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_perfect_copy_costs_nothing_and_noise_costs_more_the_more_there_is(
    tmp_path: Path, name: str
) -> None:
    batch, rng = _drawn(_zoo(tmp_path / "zoo", FACTORIES[name], ("relu", "tanh")))
    noise = torch.randn(_both(batch.first).shape, generator=rng)
    term = BehaviorLoss({"zoo": IMAGES})
    told = [
        term(
            batch,
            _both(batch.first) + strength * noise,
            _both(batch.side),
            torch.Generator().manual_seed(1),
        ).item()
        for strength in (0.0, 0.1, 0.5)
    ]
    assert told[0] < 1e-8 < told[1] < told[2]


def test_what_is_compared_are_outputs_so_that_padding_is_free(tmp_path: Path) -> None:
    batch, rng = _drawn(_zoo(tmp_path / "zoo", FACTORIES["small_cnn"]))
    noise = torch.randn(batch.first.shape, generator=rng) * ~batch.mask
    loss = BehaviorLoss({"zoo": IMAGES})(batch, _both(batch.first + noise), _both(batch.side), rng)
    assert loss.item() < 1e-8


@pytest.mark.parametrize("name", FACTORIES)
def test_a_permuted_copy_costs_nothing(tmp_path: Path, name: str) -> None:
    batch, rng = _drawn(_zoo(tmp_path / "zoo", FACTORIES[name], ("relu", "tanh")), span=10_000)
    assert not torch.equal(batch.first, batch.second)
    loss = BehaviorLoss({"zoo": IMAGES})(batch, _both(batch.second), _both(batch.side), rng)
    assert loss.item() < 1e-8


def test_gradients_reach_values_and_side_of_the_first_views_alone(tmp_path: Path) -> None:
    batch, rng = _drawn(_zoo(tmp_path / "zoo", FACTORIES["small_cnn"]))
    values, side = ((_both(x) * 1.1).requires_grad_() for x in (batch.first, batch.side))
    BehaviorLoss({"zoo": IMAGES})(batch, values, side, rng).backward()
    for grad in (values.grad, side.grad):
        assert grad is not None
        assert grad[:6].abs().sum() > 0
        assert grad[6:].abs().sum() == 0


def test_zoos_without_images_and_entries_without_a_factory_add_nothing(tmp_path: Path) -> None:
    batch, rng = _drawn(_zoo(tmp_path / "zoo", FACTORIES["small_cnn"]))
    assert BehaviorLoss({})(batch, _both(batch.first) + 1, _both(batch.side), rng) == 0


def test_what_is_needed_of_a_dataset_is_built_once(tmp_path: Path, monkeypatch) -> None:
    built: list[object] = []

    def counted(layout):
        built.append(layout)
        return token_indices(layout)

    rng, term = torch.Generator().manual_seed(0), BehaviorLoss({"zoo": IMAGES})
    zoos = [_zoo(tmp_path / name, factory, ("relu", "tanh")) for name, factory in FACTORIES.items()]
    datasets = build_datasets(zoos, CONFIG, 2, rng, silent)
    monkeypatch.setattr(behavior_loss, "token_indices", counted)
    modules: list[str] = []
    monkeypatch.setattr(
        behavior_loss, "build", lambda told, _: modules.append(str(told)) or build(told)
    )
    for dataset in datasets * 5:
        batch = draw_windows(dataset, 4, 32, rng)
        term(batch, _both(batch.first), _both(batch.side), rng)
    assert len(datasets) == len(built) == 2
    assert len(modules) == len({*modules}) == 3  # two activations of the one, and the other


def test_pretraining_with_the_term_lowers_it(tmp_path: Path) -> None:
    zoo = _zoo(tmp_path / "zoo", FACTORIES["small_cnn"], ("relu", "tanh", "gelu"))
    told: list[str] = []
    pretrain(
        [zoo],
        CONFIG,
        PretrainOptions(steps=60, batch=4, lr=5e-3, behaviour=0.5, views=1, bf16=False),
        tmp_path / "sane.safetensors",
        behaviour=BehaviorLoss({"zoo": IMAGES}),
        report=lambda event: told.append(event.note) if event.job == "pretrain" else None,
    )
    terms = [float(note.split("behaviour ")[1].split()[0]) for note in told]
    assert sum(terms[-10:]) < 0.9 * sum(terms[:10])
