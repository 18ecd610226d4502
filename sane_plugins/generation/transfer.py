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
from sane_plugins.generation.cross_architecture import Expansion, plan_expansion
from sane_plugins.progress import Report, silent
from sane_plugins.symmetry import align, canonical_layers, permutation_groups
from sane_plugins.weights import Slot, WeightGraph, apply_scale, fit_scale, undo_scale

_MIN_STD = 1e-12
_HALF_PRECISION_MIN_PARAMETERS = 3_000_000


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
        """Return how many prompts are placed side by side in one network of the target."""
        return min(self.expanded.width_ratio, len(self.prompts)) if self.expanded else 1

    def neighbors(self, number: int) -> list[WeightGraph]:
        """Return the prompts placed side by side, starting with this number."""
        return [
            self.aligned[(number + i) % len(self.aligned)] for i in range(self.prompts_per_network)
        ]

    def direct(self, number: int, default: WeightGraph) -> dict[str, torch.Tensor]:
        """Return the target's tensors as a prompt has them; prompts that do not fit are not `aligned`."""
        prompts = [prompt.tensors for prompt in self.neighbors(number)]
        if self.expanded is not None:
            return self.expanded.apply(prompts, default.tensors)
        return {key: prompts[0][source] for key, source in self.pairs.items()}

    def mean(self, default: WeightGraph) -> dict[str, torch.Tensor]:
        """Return the mean of the aligned prompts, tensor by tensor."""
        count = len(self.aligned)
        parts = [self.direct(number, default) for number in range(count)]
        return {
            key: sum((tensors[key] for tensors in parts[1:]), parts[0][key]) / count
            for key in self.pairs
        }

    def weights(self, latents: torch.Tensor, default: WeightGraph) -> dict[str, torch.Tensor]:
        """Decode latents (B, T, L) into tensors of the target, some or all, keyed as in `default`.

        B is `prompts_per_network`. Where prompts share no more than kinds of layers with the target, their
        scale belongs to other shapes: each tensor gets the mean and deviation that it has in `default`.
        """
        precision = _precision(self.template)
        networks = [decode(self.sane, x, self.template, precision=precision) for x in latents]
        if self.expanded is not None:
            return self.expanded.apply([network.tensors for network in networks], default.tensors)
        network = networks[0]
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
    prompts, target = [canonical_layers(p) for p in prompts], canonical_layers(target)
    fitting = [p for p in prompts if _pair_in_order(p, target, classifier) is not None]
    first = fitting[0] if fitting else prompts[0]
    shapes = _param_shapes(first)
    same_shape = [p for p in fitting or prompts if _param_shapes(p) == shapes]
    left_out = len(prompts) - len(same_shape)
    notes = (f"{left_out} prompts of other shapes were left out",) if left_out else ()
    aligned = _align_prompts(same_shape, rng)
    latents = torch.stack(
        [encode(sane, p, precision=_precision(p), report=report).values for p in aligned]
    )
    pairs = _pair_in_order(first, target, classifier)
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
    if (expanded := plan_expansion(first, target, classifier)) is not None:
        return _transfer_by_expansion(expanded, aligned, latents, target, sane, notes)
    return _transfer_by_kind_and_depth(latents, first, target, classifier, sane, notes)


def _transfer_by_expansion(
    expanded: Expansion,
    aligned: Sequence[WeightGraph],
    latents: torch.Tensor,
    target: WeightGraph,
    sane: SANE,
    notes: tuple[str, ...],
) -> Transfer:
    pairs = {mapping.param.key: mapping.source.key for mapping in expanded.mappings}
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

    It lies in the slot of the same kind at the nearest relative depth, in the same channel modulo their
    number, at the same part of the channel. For a kind that the prompt lacks, slots of any kind count.
    """
    prompt_kinds, target_kinds = _slot_kinds(prompt, target)
    prompt_slots, target_slots = prompt.slots, target.slots
    starts = torch.tensor([0] + [s.tokens(width) for s in prompt_slots]).cumsum(0)
    sources = []
    for i, (slot, kind) in enumerate(zip(target_slots, target_kinds, strict=True)):
        same_kind = [j for j in range(len(prompt_slots)) if prompt_kinds[j] == kind]
        candidates = same_kind or range(len(prompt_slots))
        depth = i / max(1, len(target_slots) - 1)
        j = min(candidates, key=lambda j: abs(j / max(1, len(prompt_slots) - 1) - depth))
        sources.append(starts[j] + _matching_slot_tokens(slot, prompt_slots[j], width))
    return torch.cat(sources)


def _transfer_by_kind_and_depth(
    latents: torch.Tensor,
    prompt: WeightGraph,
    target: WeightGraph,
    classifier: frozenset[str],
    sane: SANE,
    notes: tuple[str, ...],
) -> Transfer:
    token_index = matching_tokens(prompt, target, sane.config.token_width)
    prompt_kinds, target_kinds = _slot_kinds(prompt, target)
    available_kinds = set(prompt_kinds)
    pairs = {
        param.key: param.key
        for slot, kind in zip(target.slots, target_kinds, strict=True)
        for param in (slot.weight, slot.bias)
        if param is not None
        and kind in available_kinds
        and param.key not in classifier
        and _is_not_constant(target.tensors[param.key])
    }
    if not pairs:
        raise UsageError(
            f"prompt {prompt.source}",
            f"none of its layers is of a kind that {target.source} has",
            "at least one is needed to sample near",
            "give prompts nearer to the target, or none",
        )
    share = sum(p.size for p in target.params if p.key in pairs) / target.size
    note = (
        f"the prompts are of another architecture: {share:.0%} of the target's values come from latents at"
        " the same relative depth and kind of layer, at the default scale; the rest keep their default"
    )
    return Transfer(
        sane=sane,
        prompts=latents[:, token_index],
        template=target,
        pairs=pairs,
        fits=False,
        notes=(*notes, note),
    )


def _pair_in_order(
    prompt: WeightGraph, target: WeightGraph, classifier: frozenset[str]
) -> dict[str, str] | None:
    """Pair tensors in network order; return None unless all shapes but the classifier's are equal."""
    if len(prompt.params) != len(target.params):
        return None
    param_pairs = list(zip(target.params, prompt.params, strict=True))
    if any(
        target_param.shape != prompt_param.shape and target_param.key not in classifier
        for target_param, prompt_param in param_pairs
    ):
        return None
    return {
        target_param.key: prompt_param.key
        for target_param, prompt_param in param_pairs
        if target_param.shape == prompt_param.shape
    }


def _align_prompts(prompts: Sequence[WeightGraph], rng: torch.Generator) -> list[WeightGraph]:
    first = prompts[0]
    if not first.has_topology:
        return list(prompts)
    groups = permutation_groups(first)
    return [first, *(align(prompt, first, rng, groups) for prompt in prompts[1:])]


def align_to_target(prompt: WeightGraph, target: WeightGraph, rng: torch.Generator) -> WeightGraph:
    """Permute a prompt's channels to match a target of the same shapes; return any other prompt unchanged."""
    prompt, target = canonical_layers(prompt), canonical_layers(target)
    if not prompt.has_topology or _param_shapes(prompt) != _param_shapes(target):
        return prompt
    try:
        return align(prompt, target, rng)
    except SourceError:  # the shapes are equal, but names or topology differ
        return prompt


def _matching_slot_tokens(slot: Slot, other: Slot, width: int) -> torch.Tensor:
    """Return for each token of a slot the matching token of another slot, counted from its start."""
    tokens_per_row = slot.tokens(width) // slot.rows
    other_tokens_per_row = other.tokens(width) // other.rows
    channel = torch.arange(slot.rows).repeat_interleave(tokens_per_row) % other.rows
    token = torch.arange(tokens_per_row).repeat(slot.rows) * other_tokens_per_row // tokens_per_row
    return channel * other_tokens_per_row + token


def _slot_kinds(*graphs: WeightGraph) -> list[list[tuple[str, int]]]:
    """Return for each slot of each network the layer's kind and the number of the tensor's axes.

    Where the layers of one network have no kinds, the axes alone decide for all.
    """
    have_kinds = all(layer.kind != "unknown" for graph in graphs for layer in graph.layers)
    result: list[list[tuple[str, int]]] = []
    for graph in graphs:
        kinds = {layer.name: layer.kind for layer in graph.layers}
        result.append(
            [(kinds[s.layer] if have_kinds else "", len(s.weight.shape)) for s in graph.slots]
        )
    return result


def _param_shapes(graph: WeightGraph) -> list[tuple[int, ...]]:
    return [param.shape for param in graph.params]


def _precision(graph: WeightGraph) -> Precision:
    """Return "auto" (half precision where the processor has it) for networks that otherwise take long."""
    return "auto" if graph.size > _HALF_PRECISION_MIN_PARAMETERS else "float32"


def _is_not_constant(tensor: torch.Tensor) -> bool:
    return tensor.numel() > 1 and float(tensor.std()) > _MIN_STD
