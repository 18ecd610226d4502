"""From prompt networks to weights of a target: encode, align, match layers, decode.

The method: docs/explanation/sane.md, sections 6.3 and 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sane_plugins.autoencoder import SANE, Precision, decode, encode
from sane_plugins.display import ShortRepr
from sane_plugins.errors import SourceError, UsageError
from sane_plugins.generation.cross_architecture import Expansion, expansion
from sane_plugins.progress import Report, silent
from sane_plugins.symmetry import align, permutation_groups
from sane_plugins.weights import Slot, WeightGraph, apply_scale, fit_scale, undo_scale

_CONSTANT = 1e-12
_LARGE = 3_000_000


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Transfer(ShortRepr):
    """How latents drawn near the prompts become weights of the target.

    prompts (N, T, L) hold the latents at the positions of `template`, which is the first prompt where its
    tensors fit the target's one by one, apart from the classifier, or can be expanded to do so, and
    otherwise the target itself. `pairs` maps the target's keys to the template's keys that they are
    taken from, `expanded` how where their shapes differ.
    """

    sane: SANE
    prompts: torch.Tensor
    template: WeightGraph
    pairs: dict[str, str]
    fits: bool
    notes: tuple[str, ...]
    aligned: tuple[WeightGraph, ...] = ()
    expanded: Expansion | None = None

    @property
    def prompts_per_network(self) -> int:
        """Return how many prompts stand side by side in a network that is wider than they are."""
        return min(self.expanded.width_ratio, len(self.prompts)) if self.expanded else 1

    def neighbors(self, number: int) -> list[WeightGraph]:
        """Return the prompts that stand side by side where one of this number is asked for."""
        return [
            self.aligned[(number + i) % len(self.aligned)] for i in range(self.prompts_per_network)
        ]

    def direct(self, number: int, default: WeightGraph) -> dict[str, torch.Tensor]:
        """Return tensors of the target as a prompt has them; prompts that do not fit are not `aligned`."""
        prompts = [prompt.tensors for prompt in self.neighbors(number)]
        if self.expanded is not None:
            return self.expanded.apply(prompts, default.tensors)
        return {key: prompts[0][source] for key, source in self.pairs.items()}

    def mean(self, default: WeightGraph) -> dict[str, torch.Tensor]:
        """Return the mean of the aligned prompts, tensor by tensor."""
        count = len(self.aligned)
        parts = [self.direct(number, default) for number in range(count)]
        return {key: sum((p[key] for p in parts[1:]), parts[0][key]) / count for key in self.pairs}

    def weights(self, latents: torch.Tensor, default: WeightGraph) -> dict[str, torch.Tensor]:
        """Decode latents (B, T, L) into tensors of the target, some or all, keyed as in `default`.

        B is `prompts_per_network`. Where prompts share no more than kinds of layers with the target, their
        scale belongs to other shapes: each tensor gets the mean and deviation that it has in `default`.
        """
        precision = _precision(self.template)
        drawn = [decode(self.sane, x, self.template, precision=precision) for x in latents]
        if self.expanded is not None:
            return self.expanded.apply([network.tensors for network in drawn], default.tensors)
        network = drawn[0]
        if not self.fits:
            network = undo_scale(apply_scale(network, fit_scale(network)), fit_scale(default))
        return {key: network.tensors[source] for key, source in self.pairs.items()}


def plan_transfer(
    prompts: Sequence[WeightGraph],
    target: WeightGraph,
    classifier: frozenset[str],
    sane: SANE,
    rng: torch.Generator,
    report: Report = silent,
) -> Transfer:
    """Encode the prompts and match them to the target, whose classifier's keys are given.

    Prompts that fit the target are preferred; only those of one shape are used together, aligned to the
    first by weight matching. Raises `UsageError` where there is no prompt.
    """
    if not prompts:
        raise UsageError(
            "prompts",
            "none were given",
            "at least one network is needed to sample near",
            "give one, or leave them out to use those that ship with the package",
        )
    fitting = [p for p in prompts if _pairs(p, target, classifier) is not None]
    first = fitting[0] if fitting else prompts[0]
    shapes = _shapes(first)
    alike = [p for p in fitting or prompts if _shapes(p) == shapes]
    left = len(prompts) - len(alike)
    notes = (f"{left} prompts of other shapes were left out",) if left else ()
    aligned = _aligned(alike, rng)
    latents = torch.stack(
        [encode(sane, p, precision=_precision(p), report=report).values for p in aligned]
    )
    pairs = _pairs(first, target, classifier)
    if pairs is not None:
        return Transfer(
            sane=sane,
            prompts=latents,
            template=first,
            pairs=pairs,
            fits=True,
            notes=notes,
            aligned=tuple(aligned),
        )
    if (expanded := expansion(first, target, classifier)) is not None:
        return _expanded(expanded, aligned, latents, target, sane, notes)
    return _by_kind_and_depth(latents, first, target, classifier, sane, notes)


def _expanded(
    expanded: Expansion,
    aligned: Sequence[WeightGraph],
    latents: torch.Tensor,
    target: WeightGraph,
    sane: SANE,
    notes: tuple[str, ...],
) -> Transfer:
    pairs = {piece.param.key: piece.source.key for piece in expanded.pieces}
    share = sum(p.size for p in target.params if p.key in pairs) / target.size
    note = (
        f"the prompts are of another architecture: for {share:.0%} of the target's values they have layers of"
        f" the same kind and place, {_expansion_note(expanded, len(aligned))}; the rest keep their default"
    )
    return Transfer(
        sane=sane,
        prompts=latents,
        template=aligned[0],
        pairs=pairs,
        fits=False,
        notes=(*notes, note),
        aligned=tuple(aligned),
        expanded=expanded,
    )


def _expansion_note(expanded: Expansion, prompts: int) -> str:
    if (count := min(expanded.width_ratio, prompts)) > 1:
        return f"{count} prompts side by side, with the default's weights between them"
    return "channels repeated or left out to fit"


def matching_tokens(prompt: WeightGraph, target: WeightGraph, width: int) -> torch.Tensor:
    """Return for each token (T,) of the target which token of the prompt stands for it.

    That is a token of a slot of the same kind at the nearest relative depth, of the same channel counted
    around, at the same part of the channel. Slots of a kind that the prompt lacks take the nearest of all.
    """
    kinds, wanted = _kinds(prompt, target)
    parts, own = prompt.slots, target.slots
    starts = torch.tensor([0] + [s.tokens(width) for s in parts]).cumsum(0)
    sources = []
    for i, (slot, kind) in enumerate(zip(own, wanted, strict=True)):
        among = [j for j in range(len(parts)) if kinds[j] == kind] or list(range(len(parts)))
        depth = i / max(1, len(own) - 1)
        j = min(among, key=lambda j: abs(j / max(1, len(parts) - 1) - depth))
        sources.append(starts[j] + _matching_pieces(slot, parts[j], width))
    return torch.cat(sources)


def _by_kind_and_depth(
    latents: torch.Tensor,
    prompt: WeightGraph,
    target: WeightGraph,
    classifier: frozenset[str],
    sane: SANE,
    notes: tuple[str, ...],
) -> Transfer:
    at = matching_tokens(prompt, target, sane.config.token_width)
    theirs, wanted = _kinds(prompt, target)
    known = set(theirs)
    taken = {
        param.key: param.key
        for slot, kind in zip(target.slots, wanted, strict=True)
        for param in (slot.weight, slot.bias)
        if param is not None
        and kind in known
        and param.key not in classifier
        and _varies(target.tensors[param.key])
    }
    if not taken:
        raise UsageError(
            f"prompt {prompt.source}",
            f"none of its layers is of a kind that {target.source} has",
            "at least one is needed to sample near",
            "give prompts nearer to the target, or none",
        )
    share = sum(p.size for p in target.params if p.key in taken) / target.size
    note = (
        f"the prompts are of another architecture: {share:.0%} of the target's values come from latents at"
        " the same relative depth and kind of layer, at the default scale; the rest keep their default"
    )
    return Transfer(
        sane=sane,
        prompts=latents[:, at],
        template=target,
        pairs=taken,
        fits=False,
        notes=(*notes, note),
    )


def _pairs(
    prompt: WeightGraph, target: WeightGraph, classifier: frozenset[str]
) -> dict[str, str] | None:
    """Pair tensors by their place in network order; None unless all but the classifier's fit."""
    if len(prompt.params) != len(target.params):
        return None
    both = list(zip(target.params, prompt.params, strict=True))
    if any(own.shape != theirs.shape and own.key not in classifier for own, theirs in both):
        return None
    return {own.key: theirs.key for own, theirs in both if own.shape == theirs.shape}


def _aligned(prompts: Sequence[WeightGraph], rng: torch.Generator) -> list[WeightGraph]:
    first = prompts[0]
    if not first.has_topology:
        return list(prompts)
    spaces = permutation_groups(first)
    return [first, *(align(prompt, first, rng, spaces) for prompt in prompts[1:])]


def align_to_target(prompt: WeightGraph, target: WeightGraph, rng: torch.Generator) -> WeightGraph:
    """Bring a prompt's channels into the order of a target of the same shapes; any other stays."""
    if not prompt.has_topology or _shapes(prompt) != _shapes(target):
        return prompt
    try:
        return align(prompt, target, rng)
    except SourceError:  # shapes are alike, and names or topology are not
        return prompt


def _matching_pieces(slot: Slot, other: Slot, width: int) -> torch.Tensor:
    """Return for each token of a slot the token of another slot, counted from its start."""
    pieces, theirs = slot.tokens(width) // slot.rows, other.tokens(width) // other.rows
    channel = torch.arange(slot.rows).repeat_interleave(pieces) % other.rows
    piece = torch.arange(pieces).repeat(slot.rows) * theirs // pieces
    return channel * theirs + piece


def _kinds(*graphs: WeightGraph) -> list[list[tuple[str, int]]]:
    """Return of each slot of each network the layer's kind and the number of the tensor's axes.

    A file of tensors does not tell kinds: where one network has none, the axes alone decide for all.
    """
    known = all(graph.has_topology for graph in graphs)
    result: list[list[tuple[str, int]]] = []
    for graph in graphs:
        kinds = {layer.name: layer.kind for layer in graph.layers}
        result.append([(kinds[s.layer] if known else "", len(s.weight.shape)) for s in graph.slots])
    return result


def _shapes(graph: WeightGraph) -> list[tuple[int, ...]]:
    return [param.shape for param in graph.params]


def _precision(graph: WeightGraph) -> Precision:
    """Return half precision, where the processor has it, for networks that take long otherwise."""
    return "auto" if graph.size > _LARGE else "float32"


def _varies(tensor: torch.Tensor) -> bool:
    return tensor.numel() > 1 and float(tensor.std()) > _CONSTANT
