"""What SANE features know of networks of real forms that statistics do not, and how well both rank another form.

    python benchmarks/real_features.py [--zoo runs/real_forms/real-forms] [--sane FILE]

The networks that the SANE has not seen (a fifth, with all their checkpoints) are predicted by heads fitted on the
others, with errors from drawing those networks anew; and of every form, networks are ranked by a head fitted on
all other forms, Kendall's tau within each task, of last checkpoints and of all. The features of a SANE are three blocks:
the scales of slots, as they are encoded (`scales`); how well hidden tokens and their scales are told by the others
(`context`); and means of what the contrastive loss compares and of latents (`latents`). Each set has a ridge whose
penalty is chosen on the networks that are fitted on, and boosting; the better by cross-validation is taken.
Writes real_features.json and .md in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoodata
from sklearn.base import clone
from sklearn.model_selection import cross_val_predict
from zoodata import RESULTS, RUNS

from sane_plugins.autoencoder import SANE, fingerprint, standardized_tokens
from sane_plugins.autoencoder.halo_windows import cut_windows, join_windows
from sane_plugins.features import layer_statistics, sane_features
from sane_plugins.properties.dataset import group_folds
from sane_plugins.symmetry import canonical_form
from sane_plugins.weights import WeightGraph
from sane_plugins.zoo import Zoo, evaluation_pool

UNSEEN = 0.2
PROPERTIES = ("test_accuracy", "epoch", "gap")
SETS: Mapping[str, tuple[str, ...]] = {
    "s(W)": ("s(W)",),
    "statistics": ("statistics",),
    "SANE: scales": ("scales",),
    "SANE: context": ("context",),
    "SANE: latents": ("latents",),
    "SANE": ("scales", "context", "latents"),
    "statistics and SANE": ("statistics", "scales", "context", "latents"),
    "s(W) and SANE": ("s(W)", "scales", "context", "latents"),
}
HIDDEN, DRAWS, BATCH = 0.3, 3, 64
BOOTSTRAP = 2000
PLACES = layer_statistics.PLACES
Array = np.ndarray[Any, Any]


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zoo", type=Path, default=RUNS / "real_forms" / "real-forms")
    parser.add_argument("--sane", type=Path, help="a SANE file; the embedded one by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    (model, _), zoo = zoodata.sane(arguments.sane), Zoo.open(arguments.zoo)
    zoo = zoo.where(lambda entry: bool(entry.properties["finite"]))
    features = features_of(zoo, model)
    result = {
        "sane": fingerprint(model),
        "networks": len(zoo.networks),
        "checkpoints": len(zoo),
        "unseen": _unseen(zoo, features),
        "ranking": _ranking(zoo, features),
    }
    path = RESULTS / "real_features.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    page = tables(result)
    path.with_suffix(".md").write_text(page + "\n")
    print(page)


def tables(result: Mapping[str, Any]) -> str:
    """Return both tables in markdown."""
    lines = [
        f"{result['networks']} networks, {result['checkpoints']} checkpoints. R² (Kendall's tau) on networks that neither SANE nor head has seen, ± by drawing those networks anew.",
        "",
        "| features | " + " | ".join(PROPERTIES) + " |",
        "|---" * (len(PROPERTIES) + 1) + "|",
    ]
    for name in SETS:
        cells = [result["unseen"][p][name] for p in PROPERTIES]
        texts = [f"{c['r2']:.3f} ± {c['error']:.3f} ({c['tau']:.2f})" for c in cells]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    forms = list(result["ranking"]["last"]["s(W)"])
    for which, checkpoints in (("last", "last checkpoints"), ("all", "all checkpoints")):
        lines += [
            "",
            f"Kendall's tau of {checkpoints} within a form by test accuracy, by heads fitted on all other forms (mean over tasks with three networks or more).",
            "",
            "| features | " + " | ".join(forms) + " | mean |",
            "|---" * (len(forms) + 2) + "|",
        ]
        for name in SETS:
            taus = [result["ranking"][which][name][form] for form in forms]
            shown = " | ".join(f"{tau:.2f}" for tau in taus)
            lines.append(f"| {name} | {shown} | {np.mean(taus):.2f} |")
    return "\n".join(lines)


def features_of(zoo: Zoo, model: SANE) -> dict[str, Array]:
    """Return each block of features of every checkpoint, kept in runs/ between calls."""
    path = RUNS / f"real-features-{fingerprint(model)}-{len(zoo)}.npz"
    if path.exists():
        return dict(np.load(path))
    rows: list[dict[str, Array]] = []
    started = time.monotonic()
    for number, entry in enumerate(zoo.entries):
        graph = zoo.graph(entry)
        ordered = canonical_form(graph)
        ordered = ordered.replace({p.key: x for p, x in ordered.items()})
        rows.append(
            {
                "s(W)": layer_statistics.unterthiner_statistics(graph).numpy(),
                "statistics": layer_statistics.statistics(ordered).numpy(),
                **_sane_blocks(model, ordered),
            }
        )
        if number % 20 == 0:
            seconds = time.monotonic() - started
            print(f"{number}/{len(zoo)} {seconds:.0f} s", file=sys.stderr, flush=True)
    found = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    np.savez(path, **found)  # type: ignore[arg-type]
    return found


@torch.no_grad()
def _sane_blocks(model: SANE, graph: WeightGraph) -> dict[str, Array]:
    """Return the three blocks of features of a network in canonical form."""
    config = model.config
    layout = graph.token_layout(config.token_width)
    tokens, side = standardized_tokens(graph, config.token_width)
    positions, mask = config.positions(layout, 0, len(layout)), layout.mask()
    latents, projected = _encoded(model, tokens.values, side, positions)
    seen = hidden = told = torch.zeros(len(layout), device="cpu")
    counts = torch.zeros(len(layout), device="cpu")
    rng = torch.Generator().manual_seed(0)
    for _ in range(DRAWS):
        is_hidden = torch.rand(len(layout), generator=rng) < HIDDEN
        values, sides = _decoded(model, tokens.values, side, positions, is_hidden)
        error = ((values - tokens.values) ** 2 * mask).sum(1) / mask.sum(1).clamp(min=1)
        scale = ((sides - side) ** 2).mean(1)
        hidden = hidden + torch.where(is_hidden, error, 0.0)
        told = told + torch.where(is_hidden, scale, 0.0)
        seen = seen + torch.where(is_hidden, 0.0, error)
        counts = counts + is_hidden
    rows = torch.stack(
        [
            hidden / counts.clamp(min=1),
            (told / counts.clamp(min=1)).add(1e-6).log(),
            (seen / (DRAWS - counts).clamp(min=1)).add(1e-6).log(),
        ],
        1,
    ).numpy()
    matrices: list[Array] = []
    vectors: list[Array] = []
    for slot, (start, stop) in zip(graph.slots, layout.spans, strict=True):
        shown = (counts[start:stop] > 0).numpy()
        row = rows[start:stop][shown].mean(0) if shown.any() else np.zeros(3)
        (matrices if len(slot.weight.shape) > 1 else vectors).append(row)
    context = [layer_statistics.resample(x, PLACES, 3).ravel() for x in (matrices, vectors)]
    scales = sane_features.features(model, graph, None, window=None, halo=None).numpy()
    pooled = [projected.numpy(), latents.mean(0).numpy()]
    return {
        "scales": scales,
        "context": np.concatenate(context),
        "latents": np.concatenate(pooled),
    }


def _encoded(
    model: SANE, values: torch.Tensor, side: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all latents (T, L), and the mean of what the contrastive loss compares (Z,)."""
    window, halo = model.config.window_and_halo(None, None)
    cut = [cut_windows(x, window, halo).split(BATCH) for x in (values, side, positions)]
    parts = [model.encode(*batch) for batch in zip(*cut, strict=True)]
    projected = torch.cat([model.project_latents(part) for part in parts]).mean(0)
    return join_windows(torch.cat(parts), len(values), window, halo), projected


def _decoded(
    model: SANE,
    values: torch.Tensor,
    side: torch.Tensor,
    positions: torch.Tensor,
    hidden: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values (T, D) and side (T, 4) decoded where the encoder was not shown `hidden` tokens (T,)."""
    window, halo = model.config.window_and_halo(None, None)
    cut = [cut_windows(x, window, halo).split(BATCH) for x in (values, side, positions, hidden)]
    decoded = [model.decode(model.encode(v, s, p, h), p) for v, s, p, h in zip(*cut, strict=True)]
    found = [
        join_windows(torch.cat(x), len(values), window, halo) for x in zip(*decoded, strict=True)
    ]
    return found[0], found[1]


def _unseen(zoo: Zoo, features: Mapping[str, Array]) -> dict[str, Any]:
    networks = np.array([entry.network for entry in zoo.entries])
    test = np.isin(networks, sorted(evaluation_pool(zoo, UNSEEN)))
    told: dict[str, Any] = {}
    for name in PROPERTIES:
        truth = zoodata.targets(zoo, name)
        told[name] = {}
        for chosen, kinds in SETS.items():
            x = np.concatenate([features[k] for k in kinds], 1)
            regressor, predicted = fit_predict(x[~test], networks[~test], truth[~test], x[test])
            score = zoodata.scores(truth[test], predicted)
            error = _error(truth[test], predicted, networks[test])
            told[name][chosen] = {**score, "error": error, "regressor": regressor}
            print(name, chosen, told[name][chosen], file=sys.stderr, flush=True)
    return told


def fit_predict(x: Array, networks: Array, y: Array, held: Array) -> tuple[str, Array]:
    """Return the better regressor by cross-validation over networks, and what it predicts."""
    folds = [(np.flatnonzero(~t), np.flatnonzero(t)) for t in group_folds(list(networks), 5, 0)]
    ridge = zoodata.ridge(x, list(networks), y).best_estimator_
    trees = zoodata.boosting(x[:20], y[:20])
    losses = {}
    for name, model in (("ridge", ridge), ("boosting", trees)):
        predicted = cross_val_predict(clone(model), x, y, cv=folds)
        losses[name] = (float(((predicted - y) ** 2).mean()), model)
    chosen = min(losses, key=lambda name: losses[name][0])
    return chosen, losses[chosen][1].fit(x, y).predict(held)


def _error(truth: Array, predicted: Array, networks: Array) -> float:
    """Return the standard error of R^2 by drawing networks, with all their checkpoints, anew."""
    rng, names = np.random.default_rng(0), np.unique(networks)
    rows = {name: np.flatnonzero(networks == name) for name in names}
    found = []
    for _ in range(BOOTSTRAP):
        at = np.concatenate([rows[name] for name in rng.choice(names, len(names))])
        total = ((truth[at] - truth[at].mean()) ** 2).sum()
        found.append(1 - ((truth[at] - predicted[at]) ** 2).sum() / total)
    return float(np.std(found))


def _ranking(zoo: Zoo, features: Mapping[str, Array]) -> dict[str, dict[str, dict[str, float]]]:
    """Return Kendall's tau in each form left out, of last and of all checkpoints, by feature set."""
    entries = zoo.entries
    forms = np.array([str(entry.properties["form"]) for entry in entries])
    networks = np.array([entry.network for entry in entries])
    tasks = np.array([str(entry.properties["dataset"]) for entry in entries])
    last = {entry.network: row for row, entry in enumerate(entries)}
    is_last = np.isin(np.arange(len(entries)), list(last.values()))
    truth = zoodata.targets(zoo, "test_accuracy")
    target = within_tasks(truth, tasks)
    told: dict[str, dict[str, dict[str, float]]] = {"last": {}, "all": {}}
    for form in _ranked_forms(forms[is_last], tasks[is_last]):
        out = forms == form
        for chosen, kinds in SETS.items():
            x = np.concatenate([features[k] for k in kinds], 1)
            _, predicted = fit_predict(x[~out], networks[~out], target[~out], x[out])
            for which, kept in (("last", is_last[out]), ("all", np.ones(out.sum(), dtype=bool))):
                taus = [
                    zoodata.scores(truth[out][at], predicted[at])["tau"]
                    for at in (kept & (tasks[out] == task) for task in np.unique(tasks[out]))
                    if (at & is_last[out]).sum() >= 3
                ]
                told[which].setdefault(chosen, {})[form] = float(np.mean(taus))
        shown = {k: round(v[form], 2) for k, v in told["last"].items()}
        print(form, shown, file=sys.stderr, flush=True)
    return dict(told)


def within_tasks(truth: Array, tasks: Array) -> Array:
    """Return accuracies standardised within their task, so that a head does not learn which task it is."""
    found = np.zeros_like(truth)
    for task in np.unique(tasks):
        at = tasks == task
        found[at] = (truth[at] - truth[at].mean()) / truth[at].std()
    return found


def _ranked_forms(forms: Array, tasks: Array) -> Sequence[str]:
    """Return the forms of which some task has three networks or more."""
    return [
        str(form)
        for form in np.unique(forms)
        if max(np.sum((forms == form) & (tasks == task)) for task in np.unique(tasks)) >= 3
    ]


if __name__ == "__main__":
    main()
