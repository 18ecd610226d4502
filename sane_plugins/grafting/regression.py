"""Transfer by feature regression: what a graft moves is fitted to what the prompt makes of the task's images.

The method: docs/explanation/sane.md, section 16.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import nn

from sane_plugins.grafting.batchnorm import has_statistics, norms_in_training_mode
from sane_plugins.grafting.channel_maps import ChannelMaps
from sane_plugins.grafting.fitting import (
    PreparedNetwork,
    layer_fits,
    protect_links,
    protect_scale,
    regress_features,
    residual_sums,
)
from sane_plugins.grafting.methods import (
    Graft,
    GraftedTransformer,
    Transplant,
    graft_transformer,
    write_graft,
)
from sane_plugins.grafting.prompt_network import PromptNetwork, prompt_images
from sane_plugins.grafting.token_maps import token_maps
from sane_plugins.grafting.transformers import fit_to_maps, fit_writers, read_transformer
from sane_plugins.grafting.units import NetworkUnits, read_units
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.tasks import Task, forward_flops

FITTED = "fitted"
"""The label of a tensor that was fitted to a prompt's features."""
_IMAGES, _LEAST_IMAGES = 512, 64
_RUN_FLOPS, _TOKEN_FLOPS = 2**41, 2**40  # of a target's run on all images; of a transformer's
_TOKEN_PENALTY = 0.3
_LAYER_VALUES = 2**26  # numbers of one layer's output over all images that are run at once


@dataclass(frozen=True, kw_only=True)
class RegressionMethod:
    """A graft whose layers are then fitted to the prompt's features on at most `images` training images.

    `penalties` are relative; of several the best is taken layer by layer; `plain_penalties` are those of
    networks without batch norms, which make up for what a penalty takes. The prompt sees images `enlarged`
    so many times, but not beyond the size that it was trained at. `protect`: weights in front of batch norms
    are scaled up to that many times the default's deviation, and by the square of it where other norms or
    learnt scales take it back; 0: they stay.
    """

    images: int = _IMAGES
    penalties: tuple[float, ...] = (1.0,)
    plain_penalties: tuple[float, ...] = (0.1,)
    enlarged: int = 1
    protect: float = 0.0

    def __call__(
        self,
        target: nn.Module,
        prompt: PromptNetwork,
        task: Task,
        rng: torch.Generator,
        report: Report = silent,
    ) -> Transplant:
        """Write a graft and fit it; see `TransferMethod`."""
        scales = self.protect and has_statistics(target)  # with the deviations of the default
        state = target.state_dict().items() if scales else ()
        default = {key: value.clone() for key, value in state}
        return self.vary(target, default, task, self._fit(target, prompt, task, rng, report))

    @property
    def base(self) -> RegressionMethod:
        """Return the same fit without protection."""
        return replace(self, protect=0.0)

    def vary(
        self,
        target: nn.Module,
        default: Mapping[str, torch.Tensor],
        task: Task,
        written: Transplant,
    ) -> Transplant:
        """Protect the scale of a target that the base has written; see `VariantMethod`."""
        if self.protect:
            if has_statistics(target):
                norms = _norms(read_units(target, task.x_train))
                protect_scale(target, norms, default, self.protect)
            protect_links(target, task.x_train, self.protect**2)
        return written

    def _fit(
        self,
        target: nn.Module,
        prompt: PromptNetwork,
        task: Task,
        rng: torch.Generator,
        report: Report,
    ) -> Transplant:
        report(Progress(job="feature regression", done=0, total=2))
        if (found := graft_transformer(target, prompt, task, rng)) is not None:
            report(Progress(job="feature regression", done=1, total=2))
            transplant = _fitted_transformer(target, found)
            report(Progress(job="feature regression", done=2, total=2))
            return transplant
        if (mapped := self._fitted_to_maps(target, prompt, task, rng)) is not None:
            report(Progress(job="feature regression", done=2, total=2))
            return mapped
        written = write_graft(target, prompt, task, rng)
        report(Progress(job="feature regression", done=1, total=2))
        maps = ChannelMaps(written.source, written.target, written.matching)
        transplant = self._fitted(target, prompt, task, rng, written, maps)
        report(Progress(job="feature regression", done=2, total=2))
        return transplant

    def _fitted(
        self,
        target: nn.Module,
        prompt: PromptNetwork,
        task: Task,
        rng: torch.Generator,
        written: Graft,
        maps: ChannelMaps,
    ) -> Transplant:
        """Fit the layers of a target to those of the prompt that they are matched with."""
        # Training images may be in the order of their classes.
        most = min(self.images, len(task.x_train))
        few = task.subset(_image_count(written.target, target, task, most), rng)
        ours, theirs = self._prepared(target, prompt, few, written)
        fits = layer_fits(written.matching, maps, theirs, ours)
        penalties = self.penalties if has_statistics(target) else self.plain_penalties
        explained = regress_features(ours, theirs, fits, penalties, rng)
        return _transplant(written, explained)

    def _fitted_to_maps(
        self, target: nn.Module, prompt: PromptNetwork, task: Task, rng: torch.Generator
    ) -> Transplant | None:
        """Fit a transformer to a convolutional prompt's maps; None, and nothing, for other networks."""
        network = read_transformer(target, task.x_train)
        if network is None or prompt.build is None:
            return None
        most = min(2 * self.images, _TOKEN_FLOPS // network.image_flops)
        if most < _LEAST_IMAGES:
            return None
        module = prompt.build().to(task.x_train.device).eval()
        few = task.subset(min(most, len(task.x_train)), rng)
        seen = prompt_images(prompt, module, few, enlarged=self.enlarged)
        units = read_units(module, seen)
        source = PreparedNetwork(
            module=module, images=seen, norms=_norms(units), sums=residual_sums(module, seen[:2])
        )
        maps = token_maps(source, units, network.branches[0].sum.grid, network.width)
        penalty = _TOKEN_PENALTY
        found = fit_to_maps(target, network, few.x_train, maps, penalty, rng) if maps else None
        if found is None:
            return None
        keys, share = found
        note = (
            f"tokens were fitted to the prompt's maps; they explain {share:.0%} of their variance"
        )
        return Transplant(
            origins=dict.fromkeys(sorted(keys), FITTED), similarity=0.0, notes=(note,)
        )

    def _prepared(
        self, target: nn.Module, prompt: PromptNetwork, task: Task, written: Graft
    ) -> tuple[PreparedNetwork, PreparedNetwork]:
        """Return target and prompt with the images that each reads, and the sums of the passes to come."""
        images, source = task.x_train, written.source_module
        with norms_in_training_mode(target):
            sums = residual_sums(target, images[:2])
        ours = PreparedNetwork(
            module=target,
            images=images,
            norms=_norms(written.target),
            token_norms=_token_norms(written.target),
            sums=sums,
        )
        seen = prompt_images(prompt, source, task, enlarged=self.enlarged)
        theirs = PreparedNetwork(
            module=source.eval(),
            images=seen,
            norms=_norms(written.source),
            sums=residual_sums(source, seen[:2]),
        )
        return ours, theirs


def _fitted_transformer(target: nn.Module, found: GraftedTransformer) -> Transplant:
    """Fit what writes the stream of a grafted transformer to the prompt's stream."""
    keys, share = fit_writers(
        target, found.source_module, found.graft, found.images, found.source_images
    )
    lent = found.transplant
    note = f"outputs of branches were fitted to the prompt's; they explain {share:.0%} of their variance"
    return replace(
        lent,
        origins={**lent.origins, **dict.fromkeys(sorted(keys), FITTED)},
        notes=(*lent.notes, note) if keys else lent.notes,
    )


def _norms(units: NetworkUnits) -> dict[str, str]:
    """Return the name of the batch norm behind each unit that has one."""
    return {
        unit.name: unit.norm.name
        for unit in units.units
        if unit.norm is not None and unit.norm.has_statistics and unit.norm.module is not None
    }


def _token_norms(units: NetworkUnits) -> dict[str, str]:
    """Return the name of the norm without running statistics behind each unit that has one, alone."""
    found = {
        unit.name: unit.norm.name
        for unit in units.units
        if unit.norm is not None and not unit.norm.has_statistics and unit.norm.module is not None
    }
    counts = Counter(found.values())
    return {layer: norm for layer, norm in found.items() if counts[norm] == 1}


def _image_count(units: NetworkUnits, target: nn.Module, task: Task, most: int) -> int:
    """Return how many images are run at once: fewer where a layer's maps are large, or a run takes long."""
    largest = max((len(units.weight(unit)) * prod(unit.grid) for unit in units.units), default=1)
    affordable = _RUN_FLOPS // max(1, forward_flops(target, task.x_train[:1]))
    return min(most, max(_LEAST_IMAGES, min(_LAYER_VALUES // largest, affordable)))


def _transplant(written: Graft, explained: dict[str, float]) -> Transplant:
    """Return what was written: what was fitted in place of what was lent."""
    units = written.target.by_name
    fitted = set()
    for name in explained:
        unit = units[name]
        fitted |= {unit.weight} | ({unit.bias} if unit.bias else set())
        fitted |= set(unit.norm.keys.values()) if unit.norm else set()
    lent = written.transplant
    share = sum(explained.values()) / len(explained) if explained else 0.0
    note = (
        f"{len(explained)} layers were fitted to the prompt's features; they explain {share:.0%} of their"
        " variance in the mean"
    )
    return replace(
        lent,
        origins={**lent.origins, **dict.fromkeys(sorted(fitted), FITTED)},
        notes=(*lent.notes, note),
    )
