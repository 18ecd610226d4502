"""A Lightning training that is predicted from is the same training, and its logger has the numbers."""

import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn

import sane_plugins
from sane_plugins.architectures import import_torchvision

if "torchvision" not in sys.modules and find_spec("torchvision") is not None:
    import_torchvision()  # torchmetrics imports it, also one whose operators do not fit this torch
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Lightning's own warnings
lightning = pytest.importorskip("lightning.pytorch", reason="HOST ABSENT: run tox -e hosts")


def _classifier(seed: int) -> nn.Module:
    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(
                nn.Conv2d(1, 6, 3),
                nn.BatchNorm2d(6),
                nn.ReLU(),
                nn.Dropout(0.2),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(6, 4),
            )

        def training_step(self, batch, _: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-2)

    torch.manual_seed(seed)
    return Classifier()


def _trained(callbacks: list) -> tuple[nn.Module, dict]:
    module = _classifier(0)
    generator = torch.Generator().manual_seed(1)
    data = torch.utils.data.TensorDataset(
        torch.randn(24, 1, 12, 12, generator=generator),
        torch.randint(4, (24,), generator=generator),
    )
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(module, torch.utils.data.DataLoader(data, 8, shuffle=True))
    return module, trainer.callback_metrics


def test_a_watched_training_is_the_same_and_its_numbers_are_logged() -> None:
    from sane_lightning import SaneCallback

    callback = SaneCallback(host=sane_plugins.Host.installed())
    plain, _ = _trained([])
    watched, metrics = _trained([callback])
    states = [module.state_dict() for module in (plain, watched)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    steps = callback.watch.steps
    assert [step.step for step in steps] == [0, 1]
    assert not callback.watch.problems
    for name, value in steps[-1].numbers.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5)
    # The network inside is what counts, as if it had been given itself.
    told = sane_plugins.Host.installed().predict(watched.network)
    assert {name: x.value for name, x in steps[-1].estimates.items()} == {
        name: x.value for name, x in told.items()
    }
