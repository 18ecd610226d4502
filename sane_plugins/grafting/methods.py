"""Ways to move the weights of a prompt network into a target of another architecture.

The method: docs/explanation/sane.md, sections 15.1 and 15.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from sane_plugins.display import ShortRepr
from sane_plugins.errors import SourceError
from sane_plugins.grafting.lending import GraftedWeights, graft
from sane_plugins.grafting.matching import Matching, match, match_places
from sane_plugins.grafting.prompt_network import PromptNetwork, prompt_images
from sane_plugins.grafting.transformers import (
    PixelChange,
    TransformerGraft,
    graft_attention,
    has_attention,
    write_mimetic,
)
from sane_plugins.grafting.units import NetworkUnits, read_units
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.tasks import Task
from sane_plugins.weights import load_nearest

Matcher = Callable[[NetworkUnits, NetworkUnits], Matching]
TRANSFERRED = "transferred"
"""The label of a tensor whose values come from a prompt."""
DRAWN = "mimetic"
"""The label of a tensor that was drawn as trained ones are distributed; no prompt was read."""
_STREAM_IMAGES = 256  # show which directions of a transformer's stream matter


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Transplant(ShortRepr):
    """What a transfer has written: a label for each of the target's keys that got values, and notes.

    `similarity` says how alike the architectures are, from 0 to 1; whether the prompt is any good it does
    not say.
    """

    origins: Mapping[str, str]
    similarity: float
    notes: tuple[str, ...] = ()


class TransferMethod(Protocol):
    """Writes a prompt's weights into a target."""

    def __call__(
        self,
        target: nn.Module,
        prompt: PromptNetwork,
        task: Task,
        rng: torch.Generator,
        report: Report = silent,
    ) -> Transplant:
        """Write weights into a freshly initialised target, in place; return what was written.

        The target lies on the task's device. Of the task only its training images are read, no labels; the
        classifier is fitted by the caller. Equal inputs and an equal generator give equal bytes.
        """
        ...


class VariantMethod(TransferMethod, Protocol):
    """A method that begins as others do: what methods of an equal `base` share is then done once."""

    @property
    def base(self) -> TransferMethod:
        """Return the method that this one begins with."""
        ...

    def vary(
        self,
        target: nn.Module,
        default: Mapping[str, torch.Tensor],
        task: Task,
        written: Transplant,
    ) -> Transplant:
        """Go on, in place, from what the base has written into a target that held the `default` tensors."""
        ...


def base_of(method: TransferMethod) -> TransferMethod | None:
    """Return what a `VariantMethod` begins with; None for other methods."""
    return method.base if hasattr(method, "base") and hasattr(method, "vary") else None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Graft(ShortRepr):
    """A graft that was written: both networks' units, the prompt as a module, and what was matched."""

    source_module: nn.Module
    source: NetworkUnits
    target: NetworkUnits
    matching: Matching
    weights: GraftedWeights

    @property
    def transplant(self) -> Transplant:
        """Return what was written."""
        return Transplant(
            origins=dict.fromkeys(self.weights.lent, TRANSFERRED),
            similarity=self.matching.similarity,
            notes=tuple(_notes(self)),
        )


def read_both(
    target: nn.Module, prompt: PromptNetwork, task: Task, *, needed: str, way_out: str
) -> tuple[nn.Module, NetworkUnits, NetworkUnits]:
    """Return a prompt as a module, its units, and the target's.

    Raises `SourceError`, which says what is needed and what to do, for a prompt that does not run.
    """
    if prompt.build is None:
        raise SourceError(
            prompt.info.name,
            "only its weights are known, not how its layers are connected",
            needed,
            way_out,
        )
    module = prompt.build().to(task.x_train.device)
    source = read_units(module, prompt_images(prompt, module, task, 2))
    return module, source, read_units(target, task.x_train)


def write_graft(
    target: nn.Module,
    prompt: PromptNetwork,
    task: Task,
    rng: torch.Generator,
    matcher: Matcher = match,
) -> Graft:
    """Match a prompt with a target and write what the target's units are lent.

    Raises `SourceError` where the prompt's connections are not known, and where it does not take the
    task's images.
    """
    module, source, units = read_both(
        target,
        prompt,
        task,
        needed="a prompt must run to be grafted",
        way_out="give the name of its architecture, or leave this prompt out",
    )
    matching = matcher(source, units)
    weights = graft(source, units, matching, rng)
    load_nearest(target, units.graph.replace({**weights.lent, **weights.adjusted}))
    return Graft(
        source_module=module, source=source, target=units, matching=matching, weights=weights
    )


class GraftMethod:
    """Layers that match in shape and place lend their weights, by channel group; heads, by head."""

    matcher: Matcher = staticmethod(match)

    def __call__(
        self,
        target: nn.Module,
        prompt: PromptNetwork,
        task: Task,
        rng: torch.Generator,
        report: Report = silent,
    ) -> Transplant:
        """Write a graft; see `TransferMethod`."""
        report(Progress(job="graft", done=0, total=1))
        is_matched = self.matcher is match
        grafted = graft_transformer(target, prompt, task, rng) if is_matched else None
        written = grafted or write_graft(target, prompt, task, rng, self.matcher)
        report(Progress(job="graft", done=1, total=1))
        return written.transplant


class PlaceMethod(GraftMethod):
    """Layers of one kind lend their weights by their relative place alone."""

    matcher: Matcher = staticmethod(match_places)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GraftedTransformer(ShortRepr):
    """A transformer that was grafted into another: the prompt as a module, and images as both read them."""

    source_module: nn.Module
    images: torch.Tensor
    source_images: torch.Tensor
    graft: TransformerGraft

    @property
    def transplant(self) -> Transplant:
        """Return what was written."""
        return Transplant(
            origins=dict.fromkeys(sorted(self.graft.changed), TRANSFERRED),
            similarity=self.graft.similarity,
            notes=self.graft.notes,
        )


def graft_transformer(
    target: nn.Module, prompt: PromptNetwork, task: Task, rng: torch.Generator
) -> GraftedTransformer | None:
    """Graft a transformer into a transformer; None, and nothing is written, for other networks."""
    if prompt.build is None or not has_attention(target, task.x_train):
        return None
    module = prompt.build().to(task.x_train.device)
    # Training images may be in the order of their classes.
    few = task.subset(_STREAM_IMAGES, rng)
    seen = prompt_images(prompt, module, few)
    found = graft_attention(target, module, few.x_train, seen, _pixel_change(prompt, task))
    if found is None:
        return None
    return GraftedTransformer(
        source_module=module, images=few.x_train, source_images=seen, graft=found
    )


def _pixel_change(prompt: PromptNetwork, task: Task) -> PixelChange | None:
    """Return how the prompt's standardisation of pixels differs from the task's, where it is known."""
    preparation = prompt.info.preparation
    if preparation is None or len(preparation.mean) != task.channels:
        return None
    ours = zip(task.pixel_mean, task.pixel_deviation, strict=True)
    theirs = zip(preparation.mean, preparation.deviation, strict=True)
    pairs = [(d / e, (m - n) / e) for (m, d), (n, e) in zip(ours, theirs, strict=True)]
    return PixelChange(scale=tuple(x for x, _ in pairs), shift=tuple(x for _, x in pairs))


class MimeticMethod:
    """Attention is drawn as trained attention looks; the prompt is not read, and may be None."""

    needs_prompt = False

    def __call__(
        self,
        target: nn.Module,
        prompt: PromptNetwork | None,  # noqa: ARG002 - the signature is that of all methods
        task: Task,
        rng: torch.Generator,
        report: Report = silent,
    ) -> Transplant:
        """Write mimetic attention; see `TransferMethod`. Nothing is written where there is no attention."""
        report(Progress(job="mimetic", done=0, total=1))
        written = write_mimetic(target, task.x_train[:2], rng)
        report(Progress(job="mimetic", done=1, total=1))
        notes = () if written else ("the target has no attention between residual sums",)
        origins = dict.fromkeys(sorted(written), DRAWN)
        return Transplant(origins=origins, similarity=0.0, notes=notes)


def _notes(written: Graft) -> Iterator[str]:
    matched = sum(unit.name in written.matching.pairs for unit in written.target.units)
    yield f"{matched} of {len(written.target.units)} layers have a partner in the prompt"
    if written.weights.opened:
        yield f"{written.weights.opened} gates without a partner were opened"
    for side, units in (("prompt", written.source), ("target", written.target)):
        yield from (f"{side}: {note}" for note in units.notes)
