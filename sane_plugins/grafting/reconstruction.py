"""Layer-wise reconstruction of a pruned network: its layers are fitted to what the dense network computes.

After He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks" (ICCV 2017).
The method: docs/explanation/sane.md, section 16.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sane_plugins.errors import SourceError
from sane_plugins.grafting.channel_maps import ChannelMaps
from sane_plugins.grafting.kept_channels import LEAST_LIKENESS, find_kept_channels
from sane_plugins.grafting.lending import GraftedWeights
from sane_plugins.grafting.methods import Graft, Transplant, read_both
from sane_plugins.grafting.prompt_network import PromptNetwork
from sane_plugins.grafting.regression import RegressionMethod
from sane_plugins.progress import Progress, Report
from sane_plugins.tasks import Task


@dataclass(frozen=True, kw_only=True)
class ReconstructionMethod(RegressionMethod):
    """The target's own weights, fitted to the features of the network that it was pruned from.

    Only for targets that hold the weights which pruning left: raises `SourceError` for all others.
    """

    penalties: tuple[float, ...] = (0.1,)
    needs_own_weights = True

    def _fit(
        self,
        target: nn.Module,
        prompt: PromptNetwork,
        task: Task,
        rng: torch.Generator,
        report: Report,
    ) -> Transplant:
        report(Progress(job="reconstruction", done=0, total=1))
        written, maps = _pruned_copy(target, prompt, task)
        transplant = self._fitted(target, prompt, task, rng, written, maps)
        report(Progress(job="reconstruction", done=1, total=1))
        return transplant


def _pruned_copy(target: nn.Module, prompt: PromptNetwork, task: Task) -> tuple[Graft, ChannelMaps]:
    """Return a graft that lends nothing, as the target has its weights, and which channels these are of."""
    module, source, units = read_both(
        target,
        prompt,
        task,
        needed="a dense network must run to be fitted to",
        way_out="give it as a module, or name what builds it",
    )
    kept = find_kept_channels(source, units)
    if kept is None:
        raise SourceError(
            prompt.info.name,
            "the target is not this network with fewer channels and what was left of its weights",
            f"all layers and a cosine of {LEAST_LIKENESS} between their weights are needed",
            "give the network that was pruned",
        )
    maps = ChannelMaps(source, units, kept.matching, kept.maps)
    nothing = GraftedWeights(lent={}, adjusted={}, opened=0)
    graft = Graft(
        source_module=module,
        source=source,
        target=units,
        matching=kept.matching,
        weights=nothing,
    )
    return graft, maps
