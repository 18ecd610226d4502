"""Check a network: read each tensor once, and tell what is wrong with it.

The method: docs/explanation/sane.md, sections 9.6 to 9.9.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from sane_plugins.formats import InitialWeights, initial_weights
from sane_plugins.health.bad_values import find_bad_values
from sane_plugins.health.dead_channels import find_dead_channels
from sane_plugins.health.findings import Finding, Health, some
from sane_plugins.health.layer_evidence import LayerEvidence, read_evidence
from sane_plugins.health.norm_statistics import find_bad_norms
from sane_plugins.health.reference import Reference
from sane_plugins.health.tensor_profile import Array, TensorProfile, profile_tensor
from sane_plugins.health.training_state import TrainingState, find_training_state
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.weights import WeightGraph

# What tells that weights are initial ones, and what these may have and trained ones may not.
_UNTRAINED = ("never_trained", "half_loaded", "fresh_classifier", "fresh_norm")
_MEANT = ("constant", "unmeasured_norm", "unlike_its_kind")
_KEPT_ROLES = ("scale", "running_var")  # their values are looked at beside others


def check_network(
    graph: WeightGraph,
    reference: Reference | None = None,
    ignored: tuple[str, ...] = (),
    report: Report = silent,
) -> Health:
    """Return what is wrong with a network, faults first; one tensor is in memory at a time.

    `reference` describes healthy networks to compare it with. Of a file that says that it holds initial
    weights of `sane-init`, it is no fault that they are untrained. Raises `SourceError` if a tensor turns out
    to be unreadable.
    """
    profiles: dict[str, TensorProfile] = {}
    vectors: dict[str, Array] = {}
    evidence: dict[str, LayerEvidence] = {}
    for layer in graph.layers:
        report(Progress(job="check layers", done=len(evidence), total=len(graph.layers)))
        own: dict[str, TensorProfile] = {}  # a tied tensor belongs to its first layer
        for param in layer.params:
            if not param.size or param.key in profiles:
                continue
            tensor = graph.tensors[param.key]
            own[param.key] = profile_tensor(tensor, param)
            if param.role in _KEPT_ROLES:
                vectors[param.key] = _vector(tensor)
        if (found := read_evidence(layer, own)) is not None:
            evidence[layer.name] = found
        profiles |= {key: profile.without_sample() for key, profile in own.items()}
    state = find_training_state(graph, [*evidence.values()])
    findings = [*_findings(graph, profiles, vectors, evidence, state)]
    if reference is not None and not state.is_untrained:
        findings += reference.compare(graph, profiles)
    if (initial := initial_weights(graph)) is not None:
        findings = [*_of_initial(initial, state, len(evidence), findings)]
    findings.sort(key=lambda x: x.severity)  # "fault" comes before "note"
    return Health(source=graph.source, findings=tuple(findings), ignored=ignored)


def _findings(
    graph: WeightGraph,
    profiles: dict[str, TensorProfile],
    vectors: dict[str, Array],
    evidence: dict[str, LayerEvidence],
    state: TrainingState,
) -> Iterator[Finding]:
    if state.is_untrained:  # what else is odd belongs to it
        for finding in find_bad_values(graph, profiles):
            if finding.kind != "constant":
                yield finding
        yield _never_trained(state)
        return
    yield from find_bad_values(graph, profiles)
    yield from _half_loaded(state, evidence)
    yield from find_dead_channels(graph, profiles, vectors)
    yield from find_bad_norms(graph, profiles, vectors, evidence)


def _of_initial(
    initial: InitialWeights, state: TrainingState, layers: int, findings: list[Finding]
) -> Iterator[Finding]:
    """Yield the findings on initial weights: that they are, in place of what tells it, and the others."""
    text = initial.describe()
    if state.drawn:
        text += (
            f"; {len(state.drawn)} of {layers} layers are as they were drawn ({_recipes(state)})"
        )
    yield Finding(kind="initial_weights", severity="note", text=text, places=state.drawn)
    for finding in findings:
        if finding.kind not in _UNTRAINED:
            yield replace(finding, severity="note") if finding.kind in _MEANT else finding


def _never_trained(state: TrainingState) -> Finding:
    share = f"{state.drawn_share:.0%}" if state.drawn_share < 1 else "all"
    return Finding(
        kind="never_trained",
        severity="fault",
        text=f"{share} of its weights are as an initialisation draws them ({_recipes(state)})",
        places=state.drawn,
    )


def _half_loaded(state: TrainingState, evidence: dict[str, LayerEvidence]) -> Iterator[Finding]:
    fresh = [name for name, layer in evidence.items() if layer.is_fresh_norm]
    if fresh and state.trained and not state.drawn:
        norms = "the norm is as it begins" if len(fresh) == 1 else "the norms are as they begin"
        text = f"{some(fresh)}: {norms}"
        yield Finding(kind="fresh_norm", severity="note", text=text, places=tuple(fresh))
    if not state.drawn or not state.trained:
        return
    if state.is_only_head:
        yield Finding(
            kind="fresh_classifier",
            severity="note",
            text=f"{some(state.drawn)}: the end of the network is as an initialisation draws it"
            f" ({_recipes(state)}), behind trained layers",
            places=state.drawn,
        )
        return
    trained = sum(not evidence[name].is_norm for name in state.trained)
    yield Finding(
        kind="half_loaded",
        severity="fault",
        text=f"{_drawn_layers(state, evidence)}, while {_count(trained, 'layer')} trained, as after"
        " loading with strict=False",
        places=state.drawn,
    )


def _drawn_layers(state: TrainingState, evidence: dict[str, LayerEvidence]) -> str:
    """Return how many layers are as drawn, by which recipes, and how many norms are as they begin."""
    norms = sum(evidence[name].is_norm for name in state.drawn)
    told = []
    if matrices := len(state.drawn) - norms:
        them = "it" if matrices == 1 else "them"
        layers = f"{_count(matrices, 'layer')} as an initialisation draws {them}"
        told.append(f"{layers} ({_recipes(state)})")
    if norms:
        told.append(f"{_count(norms, 'norm')} as {'it begins' if norms == 1 else 'they begin'}")
    return f"{' and '.join(told)} ({some(state.drawn)})"


def _count(number: int, noun: str) -> str:
    return f"1 {noun} is" if number == 1 else f"{number} {noun}s are"


def _recipes(state: TrainingState) -> str:
    return "; ".join(state.recipes)


def _vector(tensor: object) -> Array:
    return np.asarray(tensor.detach().double().cpu().numpy()).reshape(-1)  # type: ignore[attr-defined]
