"""Lightning: a callback that predicts a network's properties while it trains.

PYTEST_DONT_REWRITE: our fixtures for pytest make it warn of packages that were imported before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from sane_plugins import Host, PredictOptions, PredictWhileTraining

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:  # the same under its older name
    from pytorch_lightning import Callback, LightningModule, Trainer

__all__ = ["SaneCallback"]


class SaneCallback(Callback):
    """Predicts from a copy after every so many epochs, and logs the numbers as `sane/<property>`.

    So `ModelCheckpoint(monitor="sane/test_accuracy")` can choose by them. `network` says which module of the
    LightningModule is the network; without it, the one that holds all of its parameters. Numbers of a network
    unlike all that a head was fitted on are guesses, and logged with `force` only. `watch.steps` keeps all
    estimates, categories too. Only the first process predicts.
    """

    def __init__(
        self,
        *,
        every_n_epochs: int = 1,
        network: Callable[[LightningModule], nn.Module] | None = None,
        options: PredictOptions | None = None,
        host: Host | None = None,
        force: bool = False,
    ) -> None:
        super().__init__()
        self.watch = PredictWhileTraining(
            every=every_n_epochs, options=options, host=host, force=force
        )
        self._network = network or _network

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Predict, and log what is a number."""
        if not trainer.is_global_zero:
            return
        watched = self.watch(self._network(pl_module), trainer.current_epoch)
        if watched is not None:
            numbers: dict[str, Any] = {**watched.numbers}
            pl_module.log_dict(numbers, rank_zero_only=True)


def _network(found: nn.Module) -> nn.Module:
    """Return the module inside LightningModules that holds all of their parameters; else the module."""
    if not isinstance(found, LightningModule):
        return found
    count = len([*found.parameters()])
    whole = (x for x in found.children() if count and len([*x.parameters()]) == count)
    inner: nn.Module | None = next(whole, None)
    outer: nn.Module = found
    return outer if inner is None else _network(inner)
