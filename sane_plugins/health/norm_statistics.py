"""Running statistics of norms that cannot be: negative or vanishing variances, or none measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sane_plugins.health.findings import Finding, some
from sane_plugins.health.layer_evidence import LayerEvidence
from sane_plugins.health.tensor_profile import Array, TensorProfile
from sane_plugins.weights import WeightGraph

_NO_VARIANCE = 1e-10  # below it a norm divides by its epsilon alone
_MOST_COLLAPSED = (
    0.5  # of a norm's channels: of dead channels, up to a quarter in networks that work
)


def find_bad_norms(
    graph: WeightGraph,
    profiles: Mapping[str, TensorProfile],
    vectors: Mapping[str, Array],
    evidence: Mapping[str, LayerEvidence],
) -> Iterator[Finding]:
    """Yield what is wrong with running statistics; vectors: the values of variances, by key."""
    unmeasured = []
    for layer in graph.layers:
        by_role = {p.role: p for p in layer.params if p.key in profiles}
        variance, mean = by_role.get("running_var"), by_role.get("running_mean")
        if variance is None or variance.key not in vectors:
            continue
        values = vectors[variance.key]
        if negative := int((values < 0).sum()):
            text = f"{variance.key}: {negative} of {len(values)} variances are negative"
            yield Finding(
                kind="negative_variance", severity="fault", text=text, places=(layer.name,)
            )
            continue
        gone = int((values < _NO_VARIANCE).sum())
        if gone > _MOST_COLLAPSED * len(values):
            text = f"{variance.key}: {gone} of {len(values)} variances are 0 or next to it"
            yield Finding(kind="collapsed_norm", severity="fault", text=text, places=(layer.name,))
        known = evidence.get(layer.name)
        if mean is None or known is None or not known.is_trained:
            continue
        if bool((values == 1).all()) and profiles[mean.key].low == profiles[mean.key].high == 0:
            unmeasured.append(layer.name)
    if unmeasured:
        text = (
            f"{some(unmeasured)}: trained, but the running mean and variance are 0 and 1,"
            " as before any data"
        )
        yield Finding(kind="unmeasured_norm", severity="fault", text=text, places=tuple(unmeasured))
